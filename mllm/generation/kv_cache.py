"""A key-value cache that is allocated once: no copy of the past at every step.

Layers see either the filled positions, which any attention kernel takes (the default), or all positions under
a mask: tensors of one shape, which `torch.compile` and CUDA graphs need.
"""

from typing import cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Like transformers' `DynamicLayer`, but writing into a buffer of `capacity` positions.

    With `index`, a (1,) int64 tensor, new keys go to that position and all positions are returned.
    """

    def __init__(self, capacity: int, index: Tensor | None) -> None:
        super().__init__()
        self.capacity, self.index = capacity, index
        self.buffer: Tensor | None = None  # (2, B, heads, capacity, E): keys and values

    def start_from(self, prompt: DynamicLayer, rows: Tensor) -> None:
        """Begin with the prompt's keys and values of the batch's `rows`, which may repeat."""
        keys, values = cast(Tensor, prompt.keys), cast(Tensor, prompt.values)
        _, heads, length, width = keys.shape
        shape = (2, rows.shape[0], heads, self.capacity, width)
        if self.buffer is None or self.buffer.shape != shape:
            # Zeros, not uninitialised memory: a masked position may not hold a NaN either.
            self.buffer = keys.new_zeros(shape)
            if self.index is not None:
                torch._dynamo.mark_static_address(self.buffer)
        self.buffer[0, :, :, :length] = keys[rows]
        self.buffer[1, :, :, :length] = values[rows]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._show(length)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add (B, heads, new, E) keys and values; returns views of the buffer."""
        assert self.buffer is not None, "start_from comes first"
        if self.index is not None:
            keys, values = self.buffer.unbind(0)
            keys.index_copy_(2, self.index, key_states)
            values.index_copy_(2, self.index, value_states)
            return keys, values
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {end} are needed")
        self.buffer[0, :, :, start:end] = key_states
        self.buffer[1, :, :, start:end] = value_states
        return self._show(end)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self.buffer is not None
        keys, values = self.buffer[..., :length, :].unbind(0)
        self.keys, self.values = keys, values
        return keys, values


class PreallocatedCache(Cache):
    """A cache of `capacity` positions per layer; `index` as in `PreallocatedLayer`, one tensor for all."""

    def __init__(self, num_layers: int, capacity: int, index: Tensor | None = None) -> None:
        self.preallocated = [PreallocatedLayer(capacity, index) for _ in range(num_layers)]
        super().__init__(layers=list(self.preallocated))

    def start_from(self, prompt: Cache, rows: Tensor) -> None:
        """Begin with the prompt's keys and values of the batch's `rows`, which may repeat."""
        for layer, filled in zip(self.preallocated, prompt.layers, strict=True):
            layer.start_from(cast(DynamicLayer, filled), rows)
