"""Random numbers that belong to one call, whatever other threads sample meanwhile."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class OwnRandom(TorchFunctionMode):
    """Within this context, in this thread, `torch.multinomial` draws from a generator of its own.

    It is how transformers chooses tokens; the numbers are those that `torch.manual_seed(seed)` would give
    to a call that runs alone.
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
