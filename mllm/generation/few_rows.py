"""Linear layers on two to four rows on a CPU: most of the time of guided image generation."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

MOST_ROWS = 4
SMALLEST_WEIGHT = 2**16  # below it the weight is in the cache, and both ways are equally fast


class FewRows(TorchFunctionMode):
    """Within this context linear layers of few rows compute `weight @ rows.T`.

    torch's BLAS splits `rows @ weight.T` over its rows; with so few of them it neither uses all threads nor
    the memory's bandwidth. The transposed product takes a fifth to a half of the time.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.linear:
            return linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def few_rows(device: torch.device) -> AbstractContextManager:
    """`FewRows` on a CPU, no change on other devices."""
    return FewRows() if device.type == "cpu" else nullcontext()


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`functional.linear`, transposed for two to four rows: (..., K), (N, K) -> (..., N)."""
    rows = input.numel() // max(input.shape[-1], 1)
    if not 2 <= rows <= MOST_ROWS or weight.numel() < SMALLEST_WEIGHT:
        return functional.linear(input, weight, bias)
    product = (weight @ input.reshape(rows, -1).t()).t().reshape(*input.shape[:-1], -1)
    return product if bias is None else product + bias
