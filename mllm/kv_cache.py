"""A key-value cache allocated once: no copy of the past at every step, and no attention to unused places."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Like transformers' `DynamicLayer`, but writing into a buffer of `capacity` places."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.key_buffer: Tensor | None = None
        self.value_buffer: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Append (B, heads, new, E) keys and values; returns all so far, as views of the buffers."""
        if self.key_buffer is None or self.value_buffer is None:
            self.lazy_initialization(key_states, value_states)
            self.key_buffer = self._allocate(key_states)
            self.value_buffer = self._allocate(value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} places, {end} are needed")
        self.key_buffer[:, :, start:end] = key_states
        self.value_buffer[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` of the batch, which may repeat."""
        if self.key_buffer is None or self.value_buffer is None:
            return
        length = self.get_seq_length()
        self.key_buffer, self.value_buffer = self.key_buffer[indices], self.value_buffer[indices]
        self._show(length)

    def _allocate(self, like: Tensor) -> Tensor:
        return torch.zeros(*like.shape[:2], self.capacity, like.shape[-1], dtype=like.dtype, device=like.device)

    def _show(self, length: int) -> None:
        assert self.key_buffer is not None and self.value_buffer is not None
        self.keys, self.values = self.key_buffer[:, :, :length], self.value_buffer[:, :, :length]


def preallocated_cache(num_layers: int, capacity: int) -> Cache:
    """A cache of `capacity` places for every layer."""
    return Cache(layers=[PreallocatedLayer(capacity) for _ in range(num_layers)])
