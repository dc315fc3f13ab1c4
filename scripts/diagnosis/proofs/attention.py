"""Packed rows equal separate ones with every attention; depth transformers take any number of positions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from ....common.errors import UserError
from ....common.loading.attention import check_attention
from ....common.loading.bounded_settings import ATTENTION
from ....mllm.gpu_proof import MANY_POSITIONS, prove_depth_transformer, prove_packed_attention
from .evidence import Evidence, Row, Setting, evidence, left_out, proved

#: What a rehearsal takes.
FEW_POSITIONS = 700

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def prove(setting: Setting) -> Evidence:
    return evidence([*_packed_rows(setting), *_depth_rows(setting)])


def _packed_rows(setting: Setting) -> Iterator[Row]:
    for implementation in ATTENTION:
        for name, dtype in DTYPES.items():
            label = f"packed rows, {implementation}, {name}"
            if implementation.startswith("flash") and dtype == torch.float32:
                continue  # its kernels compute in half precision only
            try:
                check_attention(implementation)
            except UserError as error:
                yield left_out(label, str(error))
                continue
            training = setting.on_gpu or implementation != "flex_attention"
            yield proved(
                label, partial(prove_packed_attention, implementation, setting.device, dtype, training)
            )


def _depth_rows(setting: Setting) -> Iterator[Row]:
    positions = MANY_POSITIONS if setting.on_gpu else FEW_POSITIONS
    for name, dtype in DTYPES.items():
        label = f"depth transformer, {name}"
        if dtype == torch.bfloat16 and not setting.on_gpu:
            yield left_out(label, "torch sums a norm's gradients in bf16 on a CPU")
            continue
        yield proved(label, partial(prove_depth_transformer, setting.device, dtype, positions))
