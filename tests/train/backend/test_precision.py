"""The number formats of a step: products under autocast, and sums of gradients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dualtoken.common.errors import UserError
from dualtoken.train.backend.distributed import World, join_world, leave_world
from dualtoken.train.backend.precision_proof import (
    EXACT_GRADIENT,
    MICRO_BATCHES,
    GradientProbe,
    ProductProbe,
    mean_gradient,
    probe_engine,
    probe_recipe,
    product_format,
)
from dualtoken.train.backend.zero import deepspeed_config


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    environment = dict(os.environ)
    yield join_world()
    leave_world()
    os.environ.clear()
    os.environ.update(environment)


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16_autocast": torch.bfloat16}


@pytest.mark.parametrize(
    ("precision", "stage"),
    [
        ("fp32", 0),
        slow("fp32", 2),
        slow("bf16", 1),
        ("bf16", 2),
        slow("bf16", 3),
        ("bf16_autocast", 0),
        slow("bf16_autocast", 1),
        ("bf16_autocast", 2),
        ("bf16_autocast", 3),
    ],
)
def test_products_are_in_the_precision_of_the_run(
    precision: str, stage: int, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every device DeepSpeed sees whether autocast is on, as it does on CUDA."""
    ask = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device=world.device.type: ask(device))
    engine = probe_engine(ProductProbe(), world, precision=precision, zero_stage=stage)
    assert product_format(engine, world) == FORMATS[precision]
    with torch.autocast(world.device.type, torch.bfloat16, enabled=precision == "bf16_autocast"):
        assert product_format(engine, world) == FORMATS[precision]


@pytest.mark.parametrize(
    ("stage", "offload", "overlap"),
    [
        (1, "none", True),
        slow(1, "none", False),
        slow(1, "optimizer", False),
        (2, "none", True),
        slow(2, "none", False),
        slow(2, "optimizer", False),
        (3, "none", True),
        slow(3, "none", False),
        slow(3, "all", True),
    ],
)
def test_small_gradients_are_not_lost_among_large_ones(
    stage: int, offload: str, overlap: bool, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {"precision": "bf16", "zero_stage": stage, "offload": offload}
    run |= {"deepspeed": {"zero_optimization": {"overlap_comm": overlap}}}
    engine = probe_engine(GradientProbe(), world, gradient_accumulation_steps=MICRO_BATCHES, **run)
    formats = set()
    reduce = torch.distributed.all_reduce

    def all_reduce(tensor: Tensor, *args: Any, **options: Any) -> Any:
        if tensor.numel() > 1:
            formats.add(tensor.dtype)
        return reduce(tensor, *args, **options)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    assert mean_gradient(engine, world) == pytest.approx(EXACT_GRADIENT, rel=1e-6)
    assert formats <= {torch.float32}


@pytest.mark.parametrize("stage", [1, slow(2), slow(3)])
def test_a_checkpoint_with_bf16_sums_is_continued_with_fp32_sums(
    stage: int, world: World, tmp_path: Path
) -> None:
    """Both have the same optimizer, so that checkpoints of earlier versions can be resumed."""
    sums = {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16"}
    run = {"precision": "bf16", "zero_stage": stage, "gradient_accumulation_steps": MICRO_BATCHES}
    old = probe_engine(GradientProbe(), world, deepspeed=sums, **run)
    assert mean_gradient(old, world) == pytest.approx(1 / MICRO_BATCHES, rel=1e-6)
    old.save_checkpoint(str(tmp_path), tag="x")
    new = probe_engine(GradientProbe(), world, **run)
    new.load_checkpoint(str(tmp_path), tag="x")
    states = [
        {key: value for state in one.basic_optimizer.state.values() for key, value in state.items()}
        for one in (old, new)
    ]
    assert {"exp_avg", "exp_avg_sq", "step"} <= states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert mean_gradient(new, world) == pytest.approx(EXACT_GRADIENT, rel=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_autocast_reaches_the_products_on_a_gpu(stage: int, world: World) -> None:
    engine = probe_engine(ProductProbe(), world, precision="bf16_autocast", zero_stage=stage)
    assert world.device.type == "cuda"
    assert product_format(engine, world) == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_are_summed_in_fp32_on_a_gpu(stage: int, world: World) -> None:
    run = {"precision": "bf16", "zero_stage": stage, "gradient_accumulation_steps": MICRO_BATCHES}
    engine = probe_engine(GradientProbe(), world, **run)
    assert world.device.type == "cuda"
    assert mean_gradient(engine, world) == pytest.approx(EXACT_GRADIENT, rel=1e-6)


def test_keys_of_deepspeed_are_merged_at_every_depth() -> None:
    given = {"zero_optimization": {"reduce_bucket_size": 7}, "prescale_gradients": True}
    config = deepspeed_config(probe_recipe(zero_stage=2, deepspeed=given), 2)
    assert config["prescale_gradients"] is True
    assert config["zero_optimization"] == {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 7}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_batch_size": 8}, "data.micro_batch_size"),
        ({"bf16": {"enabled": True}}, "run.precision"),
        ({"zero_optimization": {"stage": 3}}, "run.zero_stage"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "run.offload"),
        ({"gradient_clipping": 1.0}, "optimizer.gradient_clipping"),
        ([], "by name"),
    ],
)
def test_keys_that_the_trainer_sets_are_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        probe_recipe(deepspeed=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"zero_optimisation": {}}, "run.deepspeed.zero_optimisation is not a key"),
        ({"zero_optimization": {"overlap": True}}, "refuses it: .*overlap"),
        ({"communication_data_type": "int8"}, "refuses it: .*int8"),
    ],
)
def test_keys_and_values_that_deepspeed_does_not_know_are_one_line(
    given: Any, message: str, world: World
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        probe_engine(GradientProbe(), world, zero_stage=1, deepspeed=given)
    assert "\n" not in str(caught.value)
