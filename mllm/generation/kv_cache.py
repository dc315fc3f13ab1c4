"""A key-value cache allocated once: no copy of the past at every step.

It shows its layers either what is filled so far, which any attention kernel takes (the default), or all of
its places at every step: tensors of one shape, as `torch.compile` and CUDA graphs need, behind a mask.
"""

from typing import cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Like transformers' `DynamicLayer`, but writing into a buffer of `capacity` places.

    With `place`, a (1,) int64 tensor, new keys go to that place and all places are returned.
    """

    def __init__(self, capacity: int, place: Tensor | None) -> None:
        super().__init__()
        self.capacity, self.place = capacity, place
        self.buffer: Tensor | None = None  # (2, B, heads, capacity, E): keys and values

    def start_from(self, prompt: DynamicLayer, rows: Tensor) -> None:
        """Copy the prompt's keys and values of the batch's `rows`, which may repeat, to the first places."""
        keys, values = prompt.keys, prompt.values
        assert keys is not None
        assert values is not None
        _, heads, length, width = keys.shape
        shape = (2, rows.shape[0], heads, self.capacity, width)
        if self.buffer is None or self.buffer.shape != shape:
            # Zeros, not what was in memory: a masked place may still hold no NaN.
            self.buffer = keys.new_zeros(shape)
            if self.place is not None:
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
        if self.place is not None:
            keys, values = self.buffer.unbind(0)
            keys.index_copy_(2, self.place, key_states)
            values.index_copy_(2, self.place, value_states)
            return keys, values
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} places, {end} are needed")
        self.buffer[0, :, :, start:end] = key_states
        self.buffer[1, :, :, start:end] = value_states
        return self._show(end)

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        assert self.buffer is not None
        keys, values = self.buffer[..., :length, :].unbind(0)
        self.keys, self.values = keys, values
        return keys, values


class PreallocatedCache(Cache):
    """A cache of `capacity` places per layer; `place` as in `PreallocatedLayer`, one tensor for all."""

    def __init__(self, num_layers: int, capacity: int, place: Tensor | None = None) -> None:
        self.preallocated = [PreallocatedLayer(capacity, place) for _ in range(num_layers)]
        super().__init__(layers=list(self.preallocated))

    def start_from(self, prompt: Cache, rows: Tensor) -> None:
        """Begin with the prompt's cache, of its batch the `rows`, which may repeat."""
        for layer, filled in zip(self.preallocated, prompt.layers, strict=True):
            layer.start_from(cast(DynamicLayer, filled), rows)
