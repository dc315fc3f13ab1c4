"""The device and the dtype of a model, from their names."""

from typing import Any

import torch

from .errors import UserError, shown

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {
    **dict.fromkeys(("float32", "fp32", "float"), torch.float32),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
    **dict.fromkeys(("float16", "fp16", "half"), torch.float16),
}


def resolve_device(device: str | int | torch.device | None) -> torch.device:
    """A torch device; "auto" or None: the first available of cuda, mps, cpu; an integer: a CUDA device.

    Raises:
        UserError: an unknown or unavailable device.
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
        return torch.device(next(name for name, available in present.items() if available))
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not present[kind] or int(number or 0) >= count:
        raise UserError(f"device {name!r} is not available here; use 'auto' or 'cpu'")
    return torch.device(name)


def resolve_dtype(dtype: Any, device: torch.device) -> torch.dtype:
    """A torch dtype; "auto" or None: bfloat16 on cuda, else float32.

    Raises:
        UserError: an unknown dtype, or one that is not floating.
    """
    if dtype is None or (isinstance(dtype, str) and dtype == "auto"):
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in DTYPES.values():
        raise UserError(f"dtype is {shown(dtype)}; allowed: auto, float32, bfloat16, float16, or torch's own")
    return found
