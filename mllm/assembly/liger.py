"""Liger-Kernel's fused linear cross-entropy on GPUs (pip install liger-kernel), where its results are right.

It has no weights per row, so it is used for the text loss only, whose rows have equal weights.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...common.errors import first_line
from ..linear_cross_entropy import linear_cross_entropy

TextLoss = Callable[[Tensor, Tensor, Tensor | None, Tensor, float | None], Tensor]


@cache
def liger_cross_entropy(device: torch.device) -> TextLoss | None:
    """`loss(states, weight, bias, targets, softcap)`, summed over rows; None without a working Liger-Kernel.

    It is compared with `linear_cross_entropy` once on this device; a failure is a warning.
    """
    try:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    except ImportError:
        return None

    def loss(
        states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
    ) -> Tensor:
        if torch.is_autocast_enabled(states.device.type):
            dtype = torch.get_autocast_dtype(states.device.type)
            states, weight, bias = (
                states.to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
            )
        options: dict[str, Any] = {"softcap": softcap, "reduction": "sum", "accum_dtype": torch.float32}
        with torch.autocast(states.device.type, enabled=False):
            return liger_fused_linear_cross_entropy(states, weight, targets, bias=bias, **options)

    try:
        reason = None if _agrees(loss, device) else "it disagrees with the plain loss"
    except Exception as error:  # any error of a compiler or another version
        reason = first_line(error)
    if reason is None:
        return loss
    warnings.warn(f"Liger-Kernel's cross-entropy is not used on {device}: {reason}", stacklevel=2)
    return None


def _agrees(loss: TextLoss, device: torch.device) -> bool:
    """Whether value and gradients of a small case, with and without a cap, equal `linear_cross_entropy`'s."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((40, 24), (300, 24))
    states, weight = (torch.randn(size, generator=generator).to(device).requires_grad_() for size in sizes)
    targets = torch.randint(300, (40,), generator=generator).to(device)
    for softcap in (None, 5.0):
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            theirs = loss(states, weight, None, targets, softcap)
            ours, _ = linear_cross_entropy(states, weight, targets, softcap=softcap)
        gradients = [torch.autograd.grad(value, (states, weight)) for value in (theirs, ours)]
        pairs = [(theirs, ours), *zip(*gradients, strict=True)]
        # TF32 products, which a program may choose, have three correct digits.
        if not all(torch.allclose(a, b, rtol=1e-2, atol=1e-2) for a, b in pairs):
            return False
    return True
