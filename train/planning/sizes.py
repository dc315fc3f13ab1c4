"""The numbers of parameters of a model, from its shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """A model's parameters: trained and frozen ones, and bytes of its buffers (codebooks).

    Args:
        vocabulary: those of the input and output embeddings; tied ones count once.
        heads: those that the language model lacks.
        largest: of one tensor.
    """

    trained: int
    frozen: int
    buffer_bytes: int
    vocabulary: int = 0
    heads: int = 0
    largest: int = 0

    @property
    def total(self) -> int:
        return self.trained + self.frozen

    @classmethod
    def of(cls, model: Any) -> Sizes:
        """Those of a unified model, which may be on the meta device."""
        counts = {one: one.numel() for one in model.parameters()}
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        vocabulary = {one for layer in layers for one in layer.parameters()}
        return cls(
            trained=sum(count for one, count in counts.items() if one.requires_grad),
            frozen=sum(count for one, count in counts.items() if not one.requires_grad),
            buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
            vocabulary=sum(one.numel() for one in vocabulary),
            heads=sum(counts.values()) - sum(one.numel() for one in model.language_model.parameters()),
            largest=max(counts.values()),
        )
