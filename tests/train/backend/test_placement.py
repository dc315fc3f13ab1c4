"""A run starts with the weights of the plainly built model, and no process holds more than it needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from dualtoken.mllm.assembly.weights import Weights
from dualtoken.train.backend import placement
from dualtoken.train.backend.distributed import World
from dualtoken.train.backend.zero import deepspeed_config
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.objectives import build_objective

from ..conftest import Chain

WORKER = Path(__file__).with_name("placement_worker.py")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LORA = {"rank": 2, "alpha": 4}


def trained_llm(folder: Path, dtype: torch.dtype, tied: bool, **options: Any) -> str:
    """A causal language model with random weights, saved as a trained one would be."""
    torch.manual_seed(5)
    config = LlamaConfig(**SIZES, vocab_size=300, tie_word_embeddings=tied)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, **options)
    return str(folder)


def arguments(chain: Chain, output: Path, mllm: dict[str, Any], *more: str, **changes: Any) -> list[str]:
    (path,) = chain.recipe("mllm", output, **changes)
    content = yaml.safe_load(Path(path).read_text())
    content["mllm"] |= mllm
    Path(path).write_text(yaml.safe_dump(content))
    return [path, *more]


def cases(chain: Chain, folder: Path) -> dict[str, list[str]]:
    """Arguments of recipes by name: new, trained, saved and adapted models in several stages and formats."""
    files = trained_llm(folder / "files", torch.bfloat16, tied=False, max_shard_size="20KB")
    assert len(list(Path(files).glob("*.safetensors"))) > 1
    single = trained_llm(folder / "single", torch.float32, tied=True)
    saved: Any = build_objective(parse_recipe(chain.recipe("mllm", folder / "x")))
    saved.export(folder / "saved", torch.bfloat16)
    start = {"init_from": str(folder / "saved")}
    bf16 = ("--run.precision", "bf16", "--run.zero_stage")

    def case(name: str, mllm: dict[str, Any], *more: str, **changes: Any) -> list[str]:
        return arguments(chain, folder / name, mllm, *more, **changes)

    return {
        "new-0": case("a", {}),
        "new-3": case("b", {}, "--run.zero_stage", "3"),
        "new-3-bf16": case("c", {}, *bf16, "3"),
        "trained-1-bf16": case("d", {"llm": files}, *bf16, "1"),
        "trained-2": case("e", {"llm": files}, "--run.zero_stage", "2"),
        "trained-3": case("f", {"llm": files}, "--run.zero_stage", "3"),
        "trained-3-bf16": case("g", {"llm": single}, *bf16, "3"),
        "saved-3-bf16": case("h", {}, *bf16, "3", **start),
        "saved-1": case("i", {}, "--run.zero_stage", "1", **start),
        "lora-2-bf16": case("j", {"llm": files, "lora": LORA}, *bf16, "2"),
        "lora-3": case("k", {"llm": single, "lora": LORA}, "--run.zero_stage", "3"),
        "dora-3-bf16": case("l", {"llm": files, "lora": {**LORA, "dora": True}}, *bf16, "3"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_weights_at_every_stage_are_those_of_the_plainly_built_model(
    processes: int, chain: Chain, tmp_path: Path
) -> None:
    for name, words in cases(chain, tmp_path).items():
        (tmp_path / f"case-{name}.json").write_text(json.dumps(words))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    finished = subprocess.run(
        [sys.executable, *command, str(WORKER), str(tmp_path)], capture_output=True, text=True, timeout=400
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    for rank in range(processes):
        wrong = json.loads((tmp_path / f"failures-{rank}.json").read_text())
        assert len(wrong) == 12
        assert {name: reason for name, reason in wrong.items() if reason is not None} == {}


def mapped_files() -> list[tuple[int, int]]:
    """The address ranges of this process that are mapped safetensors files."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(".safetensors")]
    return [(int(start, 16), int(end, 16)) for start, end in ranges]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mapped files")
@pytest.mark.parametrize("name", ["trained-3", "saved-3-bf16"])
def test_saved_weights_stay_in_their_files_until_they_are_placed(
    name: str, chain: Chain, tmp_path: Path
) -> None:
    model: Any = build_objective(parse_recipe(cases(chain, tmp_path)[name]), Weights.MAPPED).model
    vocabulary = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    files = mapped_files()
    for key, parameter in model.language_model.named_parameters():
        is_mapped = any(start <= parameter.data_ptr() < end for start, end in files)
        is_grown = name == "trained-3" and any(parameter is one for one in vocabulary)
        assert is_mapped != is_grown, key
        assert parameter.dtype == (torch.float32 if is_grown else torch.bfloat16), key


@pytest.mark.parametrize("name", ["new-3", "trained-3-bf16", "saved-3-bf16", "lora-3", "dora-3-bf16"])
def test_a_process_without_the_values_holds_one_parameter_at_a_time(
    name: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(cases(chain, tmp_path)[name])
    objective: Any = build_objective(recipe, Weights.ABSENT)
    parameters = dict(objective.named_parameters())
    assert all(parameter.is_meta for parameter in parameters.values())
    plain = dict(build_objective(recipe).named_parameters())
    assert {key: one.shape for key, one in parameters.items()} == {k: one.shape for k, one in plain.items()}
    for key, branch in objective.model.branches.items():
        assert branch.codebook.vectors.any(), key
    sent: list[int] = []

    def partition(stream: Any, config: dict[str, Any]) -> None:
        for parameter in stream:  # the same objects, with storage, one after the other
            assert [one is parameter for one in parameters.values() if not one.is_meta and one.numel()] == [
                True
            ]
            assert (parameter.dtype, parameter.device.type) == (torch.bfloat16, "cpu")
            sent.append(parameter.numel())
            parameter.data = torch.empty(0, dtype=torch.bfloat16)

    monkeypatch.setattr(placement, "partition", partition)
    placement.place(objective, World(), torch.bfloat16, deepspeed_config(recipe, 8))
    assert sent == [one.numel() for one in plain.values()]


def test_a_parameter_stays_the_same_object_with_its_attributes(tmp_path: Path) -> None:
    for parameter in (nn.Parameter(torch.ones(2, 3, device="meta"), False), nn.Parameter(torch.ones(2, 3))):
        parameter.use_muon = True  # type: ignore[attr-defined]
        layer, trained = nn.Linear(3, 2), parameter.requires_grad
        layer.weight = parameter
        optimizer = torch.optim.AdamW([parameter])
        placement.give_storage(parameter, torch.full((2, 3), 5.0), torch.device("cpu"), torch.bfloat16)
        assert optimizer.param_groups[0]["params"][0] is layer.weight
        assert layer.weight.use_muon
        assert (layer.weight.requires_grad, layer.weight.dtype) == (trained, torch.bfloat16)
        assert layer.weight.eq(5).all()
