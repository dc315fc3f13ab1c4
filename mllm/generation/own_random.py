"""Random numbers of one call, independent of what other threads sample."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class OwnRandom(TorchFunctionMode):
    """In this context and thread transformers' sampling (`torch.multinomial`) uses a generator of its own.

    The numbers are those that `torch.manual_seed(seed)` would give to a call that runs alone.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        super().__init__()
        self.generator = torch.Generator(device).manual_seed(seed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.multinomial:
            kwargs = {"generator": self.generator, **kwargs}
        elif func is torch.rand_like:  # of assisted decoding; takes no generator
            like = args[0]
            return torch.rand(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)
        return func(*args, **kwargs)
