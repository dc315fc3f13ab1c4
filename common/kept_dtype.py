"""Modules whose tensors keep their number format when the model around them changes its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import Tensor, nn


class KeepsDtype(nn.Module):
    """A module that follows a model to other devices, but not to other number formats.

    `model.bfloat16()`, `.half()`, `.double()` and `.to(dtype)` change no bit of its tensors.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, recurse)
