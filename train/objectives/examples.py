"""How records become examples and batches: all that an objective's loader workers need to know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from ...data_pipelines.records import Record


class Examples(ABC):
    """Makes examples of records, and batches of examples.

    It is pickled to the loader's workers, so it holds no model, only settings, processors and tokenizers.
    """

    @abstractmethod
    def prepare(self, record: Record, draw: int) -> Any:
        """A model-ready example of a valid record; random choices depend on the draw number only.

        Everything that `collate` and the forward pass require is checked here, so that no record can end a
        run.

        Errors:
            RecordError for an unusable record, which loaders skip and report.
        """

    def prepare_pieces(self, record: Record, draw: int, length: int) -> list[Any]:
        """As `prepare`, for packed rows of ``length`` tokens: one example, or the pieces of a longer text."""
        return [self.prepare(record, draw)]

    @abstractmethod
    def collate(self, examples: list[Any]) -> dict[str, Any]:
        """The arguments of the objective's `forward`: tensors, and numbers that the host needs.

        Everything that depends on the values of tensors is computed here, on the CPU: the objective must not
        read them from a GPU, which would have to finish its work first.
        """
