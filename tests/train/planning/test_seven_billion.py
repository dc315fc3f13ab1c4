"""The recipe of 7 B parameters without any storage: shapes, groups, partitions, checkpoints and estimate."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch
from torch import nn

from dualtoken.mllm import DualTokenForConditionalGeneration
from dualtoken.train.backend import placement
from dualtoken.train.backend.distributed import World
from dualtoken.train.backend.zero import deepspeed_config
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.objectives.mllm import MllmObjective
from dualtoken.train.optimizers import parameter_groups
from dualtoken.train.planning.estimate import Estimate
from dualtoken.train.planning.start import Start

GPUS = 8


@pytest.fixture(scope="module")
def estimate() -> Estimate:
    return Estimate.of(parse_recipe(["pretrain_qwen2.5_7b"]))


@pytest.fixture(scope="module")
def objective(estimate: Estimate) -> MllmObjective:
    """The trained module on the meta device, without the tokenizers of a run."""
    made = MllmObjective.__new__(MllmObjective)
    nn.Module.__init__(made)
    with torch.device("meta"):
        made.model = DualTokenForConditionalGeneration(estimate.config)
    return made


def test_every_parameter_has_its_group(estimate: Estimate, objective: MllmObjective) -> None:
    groups = parameter_groups(objective, estimate.recipe.optimizer)
    found = {(group["lr"], group["weight_decay"]) for group in groups}
    assert found == {(2e-5, 0.1), (2e-5, 0.0), (1e-4, 0.1), (1e-4, 0.0)}
    counts = [sum(one.numel() for one in group["params"]) for group in groups]
    assert sum(counts) == estimate.sizes.trained == sum(one.numel() for one in objective.parameters())
    heads = sum(n for group, n in zip(groups, counts, strict=True) if group["lr"] == 1e-4)
    assert heads == estimate.sizes.heads


def test_parameters_are_partitioned_one_by_one(
    estimate: Estimate, objective: MllmObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = deepspeed_config(estimate.recipe, GPUS)
    assert config["zero_optimization"]["stage"] == 3
    assert config["bf16"]["enabled"]
    assert config["train_batch_size"] == 64
    parts: list[int] = []

    def partition(parameters: Any, config: dict[str, Any]) -> None:
        for parameter in parameters:
            assert parameter.dtype == torch.bfloat16
            parts.append(2 * ceil(parameter.numel() / GPUS))

    monkeypatch.setattr(placement, "partition", partition)
    placement.place(objective, World(device=torch.device("meta")), torch.bfloat16, config)
    start = Start.of(estimate.recipe, estimate.sizes, GPUS)
    assert sum(parts) == pytest.approx(start.others, rel=1e-4)
    # Masters and two moments in fp32, in the files of all ranks.
    assert 6 * GPUS * sum(parts) == pytest.approx(start.checkpoint, rel=1e-4)


def test_a_start_takes_a_part_of_what_complete_models_would(estimate: Estimate) -> None:
    complete = GPUS * 4 * estimate.sizes.total
    start = Start.of(estimate.recipe, estimate.sizes, GPUS)
    assert start.first + (GPUS - 1) * start.others < complete / 8
    assert start.gpu < estimate.memory(3, "none", GPUS).total
    table = estimate.table()
    assert "| GPUs | GPU | host, process 0 | host, each other | host, resumed | checkpoint |" in table


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["--mllm.llm", "{model_type: qwen2, hidden_size: 64, num_hidden_layers: 1}"], 1.0),
        (["--mllm.lora.rank", "4"], 1.0),
        ([], 0.5),
    ],
    ids=["new", "lora", "trained"],
)
def test_the_first_process_holds_what_is_in_no_file(options: list[str], first: float) -> None:
    estimate = Estimate.of(parse_recipe(["pretrain_qwen2.5_0.5b", *options]))
    start = Start.of(estimate.recipe, estimate.sizes, GPUS)
    assert start.first <= first * 4 * estimate.sizes.total
    assert (start.first == 4 * estimate.sizes.total) == (first == 1.0)


def test_averages_take_four_bytes_for_each_trained_parameter() -> None:
    plain, averaged = (
        Estimate.of(parse_recipe(["pretrain_qwen2.5_0.5b", *options]))
        for options in ([], ["--run.weight_average", "0.999"])
    )
    extra = 4 * plain.sizes.trained
    totals = [one.memory(2, "none", GPUS).total for one in (plain, averaged)]
    assert totals[1] - totals[0] == pytest.approx(extra)
    checkpoints = [Start.of(one.recipe, one.sizes, GPUS).checkpoint for one in (plain, averaged)]
    assert checkpoints[1] - checkpoints[0] == pytest.approx(extra)
