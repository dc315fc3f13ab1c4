"""The arithmetic that turns images into codes: fp32, TF32 or bf16, whatever the program around it uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from ..common.precision import fp32_products

EncodePrecision = Literal["fp32", "tf32", "bf16"]


@contextmanager
def encoding_in(precision: EncodePrecision, device: torch.device) -> Iterator[None]:
    """Encode on this device in `precision` (see `TokenizerSettings.encode_precision`).

    Torch's switches for TF32 and an autocast around it have no effect inside, and are as before afterwards.
    """
    with fp32_products("tf32" if precision == "tf32" else "ieee", device):
        if not torch.amp.is_autocast_available(device.type):  # "meta"
            yield
            return
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield


def precision_of(model: torch.nn.Module, precision: EncodePrecision) -> str:
    """The precision that codes of this tokenizer have: weights in bf16 or fp16 leave no fp32."""
    dtype = next(model.parameters()).dtype
    return precision if dtype == torch.float32 else str(dtype).removeprefix("torch.")
