"""A key-value cache allocated once: no copy of the past at every step, no attention to unused places."""

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Like transformers' `DynamicLayer`, but writing into a buffer of `capacity` places."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.buffer: Tensor | None = None  # (2, B, heads, capacity, E): keys and values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (B, heads, new, E) keys and values; returns all so far, as views of the buffer."""
        if self.buffer is None:
            self.lazy_initialization(key_states, value_states)
            rows, heads, _, width = key_states.shape
            self.buffer = key_states.new_zeros(2, rows, heads, self.capacity, width)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} places, {end} are needed")
        self.buffer[0, :, :, start:end] = key_states
        self.buffer[1, :, :, start:end] = value_states
        return self._show(self.buffer, end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` of the batch, which may repeat."""
        if self.buffer is not None:
            length = self.get_seq_length()
            self.buffer = self.buffer[:, indices]
            self._show(self.buffer, length)

    def _show(self, buffer: Tensor, length: int) -> tuple[Tensor, Tensor]:
        keys, values = buffer[..., :length, :].unbind(0)
        self.keys, self.values = keys, values
        return keys, values


class PreallocatedCache(Cache):
    """A cache of `capacity` places for each of `num_layers` layers."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.preallocated = [PreallocatedLayer(capacity) for _ in range(num_layers)]
        super().__init__(layers=list(self.preallocated))

    def select_rows(self, indices: Tensor) -> None:
        """Keep the rows `indices` of the batch in every layer; they may repeat."""
        for layer in self.preallocated:
            layer.batch_select_indices(indices)
