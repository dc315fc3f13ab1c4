"""Training with low-rank adapters: what moves, what does not, resuming, and the exported plain folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.mllm import DualTokenForConditionalGeneration, LoraSettings
from dualtoken.train.config.optimizer import OptimizerConfig
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import Recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.objectives.mllm import MllmObjective
from dualtoken.train.optimizers import parameter_groups

from .conftest import Chain, run_training
from .test_training import MUON, assert_same_losses, losses

LORA = {"rank": 2, "alpha": 4, "dropout": 0.1}
BASE_LAYER, SPECIAL_ROWS = ".base_layer", ".token_adapter"


@pytest.fixture(scope="module")
def llm(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model with random weights, saved as a trained one would be."""
    folder = tmp_path_factory.mktemp("llm")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=300, tie_word_embeddings=True)).save_pretrained(folder)
    return folder


def lora_recipe(chain: Chain, output: Path, llm: Path | dict, lora: dict = LORA, **changes: Any) -> list[str]:
    """Arguments of the tiny run, on a trained LLM with adapters."""
    (path,) = chain.recipe("mllm", output, **changes)
    content = yaml.safe_load(Path(path).read_text())
    content["mllm"] |= {"llm": llm if isinstance(llm, dict) else str(llm), "lora": lora}
    Path(path).write_text(yaml.safe_dump(content))
    return [path]


def objective_of(arguments: list[str]) -> MllmObjective:
    """What the run starts from."""
    recipe = parse_recipe(arguments)
    torch.manual_seed(recipe.seed)
    objective = build_objective(recipe)
    assert isinstance(objective, MllmObjective)
    return objective


def checkpoint_weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's last checkpoint, by their names in the objective."""
    newest = max((output / "checkpoints").glob("step-*"))
    return torch.load(newest / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["module"]


def assert_only_adapters_and_new_parts_moved(start: MllmObjective, weights: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == start.state_dict().keys()
    trained = {name for name, parameter in start.named_parameters() if parameter.requires_grad}
    frozen = [name for name, _ in start.named_parameters() if name not in trained]
    assert {name.split(".")[1] for name in trained} == {
        "language_model",
        "branches",
    }
    assert any(BASE_LAYER in name for name in frozen)
    for name, before in start.state_dict().items():
        if name in trained:
            assert not torch.equal(weights[name], before), name
        elif SPECIAL_ROWS not in name:  # tied layers have a parameter under two names
            assert torch.equal(weights[name], before), name
    for name in frozen:
        assert torch.equal(weights[name], start.state_dict()[name]), name


def test_a_run_trains_adapters_and_exports_a_plain_model(chain: Chain, llm: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run_training(lora_recipe(chain, output, llm))
    start, weights = objective_of(lora_recipe(chain, output, llm)), checkpoint_weights(output)
    assert_only_adapters_and_new_parts_moved(start, weights)

    # The export is what the last checkpoint computes, without adapters.
    written = load_file(output / "model" / "model.safetensors")
    assert not any("lora" in key or "adapter" in key or "base_layer" in key for key in written)
    exported = DualTokenForConditionalGeneration.from_pretrained(output / "model")
    start.load_state_dict(weights)
    records = ShardDataset(chain.folder / "codes_t2i")
    batch = start.collate([start.prepare(records[index], 0) for index in range(2)])
    expected = start.model.eval()(**batch)
    loss = exported(**batch)
    for name in ("text_loss", "pixel_loss", "semantic_loss"):
        torch.testing.assert_close(getattr(loss, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "processes"), [(0, 1), (2, 2)])
@pytest.mark.parametrize(("dora", "optimizer"), [(False, ()), (True, MUON)], ids=["lora", "dora-muon"])
def test_a_resumed_run_is_the_uninterrupted_one(
    stage: int,
    processes: int,
    dora: bool,
    optimizer: tuple[str, ...],
    chain: Chain,
    llm: Path,
    tmp_path: Path,
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = ["--run.zero_stage", str(stage), "--run.gradient_accumulation_steps", "2", *optimizer]
    lora = {**LORA, "dora": dora}
    run_training([*lora_recipe(chain, whole, llm, lora), *options], processes)
    run_training([*lora_recipe(chain, resumed, llm, lora), *options, "--run.stop_after", "3"], processes)
    run_training([*lora_recipe(chain, resumed, llm, lora), *options], processes)
    assert_same_losses(losses(whole), losses(resumed))
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed)]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])
    start = objective_of(lora_recipe(chain, whole, llm, lora))
    assert_only_adapters_and_new_parts_moved(start, checkpoint_weights(whole))


@pytest.mark.slow
def test_bf16_weights_averages_and_recomputed_layers_take_adapters(
    chain: Chain, llm: Path, tmp_path: Path
) -> None:
    options = ["--run.precision", "bf16", "--run.zero_stage", "1", "--run.weight_average", "0.9"]
    recipe = lora_recipe(chain, tmp_path / "run", llm)
    run_training([*recipe, *options, "--run.gradient_checkpointing", "true"])
    exported = DualTokenForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    assert exported.dtype == torch.float32
    assert all(parameter.isfinite().all() for parameter in exported.parameters())


def test_a_run_starts_from_an_exported_model(chain: Chain, llm: Path, tmp_path: Path) -> None:
    plain = objective_of(chain.recipe("mllm", tmp_path / "plain"))
    plain.export(tmp_path / "exported", torch.float32)
    configuration = yaml.safe_load(Path(chain.recipe("mllm", tmp_path / "x")[0]).read_text())["mllm"]["llm"]
    start = {"init_from": str(tmp_path / "exported")}
    objective = objective_of(lora_recipe(chain, tmp_path / "run", configuration, **start))
    frozen = {
        name.replace(BASE_LAYER, "").replace(SPECIAL_ROWS, ""): parameter
        for name, parameter in objective.model.named_parameters()
        if not parameter.requires_grad
    }
    assert frozen
    exported = plain.model.state_dict()
    assert all(torch.equal(parameter, exported[name]) for name, parameter in frozen.items())
    with torch.no_grad():
        ids = torch.arange(20)[None]
        torch.testing.assert_close(
            objective.model.eval()(input_ids=ids).logits, plain.model.eval()(input_ids=ids).logits
        )


def test_adapters_are_trained_by_adamw_and_full_matrices_by_muon(
    chain: Chain, llm: Path, tmp_path: Path
) -> None:
    objective = objective_of(lora_recipe(chain, tmp_path / "run", llm, {**LORA, "dora": True}))
    groups = parameter_groups(objective, OptimizerConfig(muon_lr=0.02))
    owner = {id(p): group["use_muon"] for group in groups for p in group["params"]}
    by_muon = {name for name, p in objective.named_parameters() if owner.get(id(p))}
    assert {tuple(name.split(".")[1:4]) for name in by_muon} == {
        ("branches", branch, "depth_transformer") for branch in ("pixel", "semantic")
    }
    assert len(owner) == sum(parameter.requires_grad for parameter in objective.parameters())


def test_adapters_of_random_weights_are_refused(chain: Chain, llm: Path, tmp_path: Path) -> None:
    random = yaml.safe_load(Path(chain.recipe("mllm", tmp_path / "x")[0]).read_text())["mllm"]["llm"]
    with pytest.raises(UserError, match=r"mllm.lora adapts a trained LLM.*init_from"):
        parse_recipe(lora_recipe(chain, tmp_path / "y", random))


def test_settings_are_read_strictly(chain: Chain, llm: Path, tmp_path: Path) -> None:
    path = lora_recipe(chain, tmp_path / "run", llm, {"rank": 4, "target_modules": ["q_proj"]})
    recipe = parse_recipe([*path, "--mllm.lora.alpha", "7"])
    assert isinstance(recipe, Recipe)
    assert recipe.mllm is not None
    assert recipe.mllm.lora == LoraSettings(rank=4, alpha=7, target_modules=["q_proj"])
    for wrong, named in (
        ({"ranks": 4}, "ranks"),
        ({"rank": 0}, "lora.rank"),
        ({"dropout": 2.0}, "lora.dropout"),
    ):
        with pytest.raises(UserError, match=named):
            parse_recipe(lora_recipe(chain, tmp_path / "wrong", llm, wrong))
