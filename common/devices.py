"""The device and the dtype of a model, from what users write for them."""

from typing import Any

import torch

from .errors import UserError, shown

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
}


def resolve_device(device: str | int | torch.device | None) -> torch.device:
    """The device meant: "auto" (also None) takes cuda, then mps, then cpu; a number is a CUDA device's.

    Raises:
        UserError: a device that is unknown, or not there.
    """
    if isinstance(device, int) and not isinstance(device, bool):
        device = f"cuda:{device}"
    name = "auto" if device is None else str(device) if isinstance(device, str | torch.device) else ""
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (":" in name and not number.isdecimal()):
        raise UserError(
            f"device is {shown(device)}, which is unknown; allowed: {', '.join(DEVICES)}, or cuda:1"
        )
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if kind == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not present[kind] or int(number or 0) >= count:
        raise UserError(f"device {name!r} is not available here; use 'auto' or 'cpu'")
    return torch.device(name)


def resolve_dtype(dtype: Any, device: torch.device) -> torch.dtype:
    """The dtype meant: "auto" (also None) is bfloat16 on cuda and float32 elsewhere.

    Raises:
        UserError: one that is unknown, or not a floating one.
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in DTYPES.values():
        raise UserError(f"dtype is {shown(dtype)}; allowed: auto, float32, bfloat16, float16, or torch's own")
    return found
