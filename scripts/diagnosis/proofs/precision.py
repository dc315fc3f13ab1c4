"""A run's precision reaches the products on the device, and gradients in bf16 are summed in fp32."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ....train.backend.distributed import join_world, leave_world
from ....train.backend.precision_proof import (
    EXACT_GRADIENT,
    MICRO_BATCHES,
    GradientProbe,
    ProductProbe,
    mean_gradient,
    probe_engine,
    product_format,
)
from .evidence import Evidence, Row, Setting, at_most, evidence

#: The format of matrix products for each value of `run.precision`, and a ZeRO stage that it may have.
FORMATS = {
    "fp32": (torch.float32, 0),
    "bf16_autocast": (torch.bfloat16, 0),
    "bf16": (torch.bfloat16, 1),
}


def prove(setting: Setting) -> Evidence:
    return evidence(_rows())


def _rows() -> Iterator[Row]:
    world = join_world()
    for precision, (expected, stage) in FORMATS.items():
        engine = probe_engine(ProductProbe(), world, precision=precision, zero_stage=stage)
        found = product_format(engine, world)
        yield Row(
            f"format of products, run.precision: {precision}", str(found), str(expected), found == expected
        )
    for stage in (1, 2, 3):
        options = {"precision": "bf16", "zero_stage": stage, "gradient_accumulation_steps": MICRO_BATCHES}
        engine = probe_engine(GradientProbe(), world, **options)
        error = abs(mean_gradient(engine, world) / EXACT_GRADIENT - 1.0)
        yield at_most(f"relative error of a sum of gradients in bf16, ZeRO {stage}", error, 1e-4)
    leave_world()
