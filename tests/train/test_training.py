"""Whole runs: every objective trains and exports, resumed equals uninterrupted, ranks agree, stages agree."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import Record, RecordError, assistant, text_part, user
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.mllm import ChatFormat, DualTokenForConditionalGeneration
from dualtoken.mllm.generation.image_generation import unconditional_ids
from dualtoken.tokenizer import DualTokenizer
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.trainer import Stream

from .conftest import Chain, run_training


def losses(output: Path) -> list[dict[str, float]]:
    """The logged losses of a run, one dict per step."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key == "step" or key.startswith("loss/")}
        for line in lines
    ]


def assert_same_losses(
    one: list[dict[str, float]], other: list[dict[str, float]], tolerance: float = 0.0
) -> None:
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for a, b in zip(one, other, strict=True):
        for key in a:
            assert math.isclose(a[key], b[key], rel_tol=tolerance, abs_tol=tolerance), (key, a, b)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("contrastive", ["--run.weight_average", "0.9"], marks=pytest.mark.slow),
        ("tokenizer", []),
        ("mllm", []),
    ],
)
def test_each_objective_trains_resumes_and_exports(
    name: str, options: list[str], chain: Chain, tmp_path: Path
) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_training([*chain.recipe(name, whole), *options])
    run_training([*chain.recipe(name, resumed), *options, "--run.stop_after", "3"])
    assert not (resumed / "model").exists()
    run_training([*chain.recipe(name, resumed), *options])
    assert [line["step"] for line in losses(whole)] == [1, 2, 3, 4, 5, 6]
    assert_same_losses(losses(whole), losses(resumed))
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed)]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


MUON = ("--optimizer.muon_lr", "0.02", "--optimizer.gradient_clipping", "0")


@pytest.mark.parametrize(
    ("stage", "optimizer"),
    [
        pytest.param(0, (), marks=pytest.mark.slow),
        pytest.param(1, (), marks=pytest.mark.slow),
        (2, ()),
        pytest.param(0, MUON, marks=pytest.mark.slow),
        pytest.param(2, MUON, marks=pytest.mark.slow),
    ],
)
def test_two_processes_resume_with_the_same_losses(
    stage: int, optimizer: tuple[str, ...], chain: Chain, tmp_path: Path
) -> None:
    """Batches of one record: ranks at times hold text only, a question only or image generation only."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = ["--run.zero_stage", str(stage), "--run.gradient_accumulation_steps", "2", *optimizer]
    run_training([*chain.recipe("mllm", whole), *options], processes=2)
    run_training([*chain.recipe("mllm", resumed), *options, "--run.stop_after", "3"], processes=2)
    run_training([*chain.recipe("mllm", resumed), *options], processes=2)
    assert_same_losses(losses(whole), losses(resumed))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("optimizer", [(), MUON], ids=["adamw", "muon"])
def test_zero_stages_agree(optimizer: tuple[str, ...], chain: Chain, tmp_path: Path) -> None:
    runs = []
    adamw_only = [] if optimizer else [(3, "none"), (1, "optimizer"), (3, "optimizer"), (3, "all")]
    for stage, offload in [(0, "none"), (1, "none"), (2, "none"), *adamw_only]:
        output = tmp_path / f"stage{stage}{offload}"
        options = ["--run.zero_stage", str(stage), "--run.offload", offload, *optimizer]
        run_training([*chain.recipe("mllm", output), *options], processes=2)
        runs.append(losses(output))
    # Muon orthogonalises in bf16.
    tolerance = 1e-3 if optimizer else 1e-5
    for other in runs[1:]:
        assert_same_losses(runs[0], other, tolerance)


@pytest.mark.slow
def test_accumulation_and_ranks_give_the_means_of_the_full_batch(chain: Chain, tmp_path: Path) -> None:
    """Four records in one batch, in four accumulated micro-batches, or on two ranks: the same first loss."""
    variants = {
        "whole": ([], 1, {"micro_batch_size": 4}),
        "accumulated": (["--run.gradient_accumulation_steps", "4"], 1, {"micro_batch_size": 1}),
        "two_ranks": (["--run.gradient_accumulation_steps", "2"], 2, {"micro_batch_size": 1}),
    }
    first = {}
    for name, (options, processes, data) in variants.items():
        sizes = [w for key, value in data.items() for w in (f"--data.{key}", str(value))]
        recipe = chain.recipe("mllm", tmp_path / name)
        exact = [
            "--mllm.model.visual_target_fraction",
            "1.0",
            "--mllm.prompt_dropout",
            "0",
            "--data.sort_window",
            "1",
        ]
        run_training([*recipe, *options, *sizes, *exact], processes)
        first[name] = losses(tmp_path / name)[:2]
    assert_same_losses(first["whole"], first["accumulated"], 1e-4)
    assert_same_losses(first["whole"], first["two_ranks"], 1e-4)


def test_exports_load_by_their_public_calls(chain: Chain, tmp_path: Path) -> None:
    run_training([*chain.recipe("tokenizer", tmp_path / "tokenizer"), "--run.steps", "3"])
    tokenizer = DualTokenizer.from_pretrained(tmp_path / "tokenizer" / "model")
    run_training(
        [
            *chain.recipe("mllm", tmp_path / "mllm"),
            *("--run.steps", "2", "--run.zero_stage", "1", "--run.precision", "bf16"),
        ]
    )
    model = DualTokenForConditionalGeneration.from_pretrained(tmp_path / "mllm" / "model")
    assert model.visual_tokenizer is not None
    assert tokenizer.config.grid_size == model.visual_tokenizer.config.grid_size


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive", "tokenizer", "mllm"])
def test_attention_implementations_agree(name: str, chain: Chain, tmp_path: Path) -> None:
    first = {}
    for attention in ("sdpa", "eager"):
        objective = build_objective(parse_recipe(chain.recipe(name, tmp_path / attention)))
        objective.set_attention(attention)
        layers = [module for module in objective.modules() if type(module).__name__.endswith("Attention")]
        used = {module.config._attn_implementation for module in layers if hasattr(module, "config")}
        assert used == {attention}
        run_training([*chain.recipe(name, tmp_path / attention), "--run.attention", attention])
        first[attention] = losses(tmp_path / attention)[:1]
    assert_same_losses(first["sdpa"], first["eager"], 1e-4)


@pytest.mark.parametrize("name", [pytest.param("tokenizer", marks=pytest.mark.slow), "mllm"])
def test_recomputing_layers_changes_nothing(name: str, chain: Chain, tmp_path: Path) -> None:
    """Nor do codebooks move twice: the later losses would differ."""
    for folder, value in (("kept", "false"), ("recomputed", "true")):
        run_training([*chain.recipe(name, tmp_path / folder), "--run.gradient_checkpointing", value])
    assert_same_losses(losses(tmp_path / "kept"), losses(tmp_path / "recomputed"), 1e-5)


def test_records_without_a_target_are_named(chain: Chain, tmp_path: Path) -> None:
    objective = build_objective(parse_recipe(chain.recipe("mllm", tmp_path / "x")))
    for messages in ([user("a circle")], [user("a circle"), assistant("")], [assistant(""), user("?")]):
        with pytest.raises(RecordError, match="'empty-7' has nothing to learn"):
            objective.prepare(Record("empty-7", messages), 0)
    odd = {"role": "robot", "content": [text_part("x")]}
    with pytest.raises(RecordError, match="'odd-1': message 1 has role 'robot'"):
        objective.prepare(Record("odd-1", [odd, assistant("y")]), 0)
    system = {"role": "system", "content": [text_part("x")]}
    objective.prepare(Record("system", [system, user("?"), assistant("y")]), 0)
    objective.prepare(Record("good", [user(""), assistant("y")]), 0)


def test_turns_that_build_on_each_other_keep_their_order(chain: Chain, tmp_path: Path) -> None:
    objective = build_objective(parse_recipe(chain.recipe("mllm", tmp_path / "x")))
    record = ShardDataset(chain.folder / "codes_vqa")[0]
    ordered = replace(record, metadata={**record.metadata, "ordered": True})

    def orders(asked: Record) -> set[tuple[int, ...]]:
        return {tuple(objective.prepare(asked, draw).input_ids.tolist()) for draw in range(8)}

    assert len(orders(record)) > 1
    assert len(orders(ordered)) == 1


def test_a_resumed_run_keeps_its_chat_format(chain: Chain, tmp_path: Path) -> None:
    """A template may write today's date; the run's first day counts."""
    objective: Any = build_objective(parse_recipe(chain.recipe("mllm", tmp_path / "x")))
    assert objective.extra_state() == {}
    objective.processor.chat_format = ChatFormat(start="<|bos|>It is Monday.\n")
    state = objective.extra_state()
    resumed: Any = build_objective(parse_recipe(chain.recipe("mllm", tmp_path / "x")))
    resumed.load_extra_state(state)
    assert resumed.processor.chat_format == objective.processor.chat_format
    generation = [{"role": "user", "content": [{"type": "unconditional"}]}, assistant("x")]
    trained = resumed.processor.encode_record(generation).input_ids.tolist()
    prompt = unconditional_ids(resumed.model.config).tolist()[:-1]
    assert trained[: len(prompt)] == prompt


def test_missing_data_is_named_before_anything_is_built(chain: Chain, tmp_path: Path) -> None:
    recipe = parse_recipe(
        [*chain.recipe("mllm", tmp_path / "x"), "--data.sources.chat.path", str(tmp_path / "gone")]
    )
    with pytest.raises(UserError, match="gone"):
        Stream.open(recipe, None)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_codes_of_another_tokenizer_are_refused(chain: Chain, tmp_path: Path) -> None:
    other = DualTokenizer.from_pretrained(chain.folder / "tokenizer")
    with torch.no_grad():
        next(other.backbone.parameters()).add_(1.0)
    other.save_pretrained(tmp_path / "other")
    recipe = parse_recipe(
        [*chain.recipe("mllm", tmp_path / "x"), "--mllm.visual_tokenizer", str(tmp_path / "other")]
    )
    objective = build_objective(recipe)
    manifest = ShardDataset(chain.folder / "codes_t2i").manifest
    with pytest.raises(UserError, match="t2i were made by another tokenizer"):
        objective.check_source("t2i", manifest)
    objective.check_source("chat", ShardDataset(chain.folder / "chat").manifest)
    images = {"counts": {"images": 3}}
    with pytest.raises(UserError, match="t2i holds 3 images and no codes: encode them"):
        objective.check_source("t2i", images)
