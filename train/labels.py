"""Which records a batch is made of, and from which source: for losses by source, and to name what broke a
step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..data_pipelines.records import Record
from ..data_pipelines.stream.loader import RecordSource
from .objectives.base import Batch, Objective

#: Keys of a batch beside what the model takes: ids of its records (strings); the number of each example's
#: source (B,), or of each position's (B, L) where several records share a row.
RECORD_IDS, SOURCE_IDS = "record_ids", "source_ids"
_SOURCE = "_source_number"


class NumberedSource:
    """A source whose records carry its number in the mixture; in all else the source itself."""

    def __init__(self, source: RecordSource, number: int) -> None:
        self._source, self._number = source, number

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        return replace(record, metadata={**record.metadata, _SOURCE: self._number})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_source":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self._source, name)


class LabelledExample:
    """An objective's example with its record's id and source; in all else the example itself."""

    def __init__(self, example: Any, record_id: str, source: int) -> None:
        self.example, self.record_id, self.source = example, record_id, source

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "example":
            raise AttributeError(name)
        return getattr(self.example, name)


class Labelled:
    """What a stream needs of an objective, with the labels carried into the batches."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def prepare(self, record: Record, draw: int) -> LabelledExample:
        return LabelledExample(
            self.objective.prepare(record, draw), record.id, record.metadata.get(_SOURCE, 0)
        )

    def collate(self, examples: Sequence[LabelledExample]) -> Batch:
        batch = self.objective.collate([one.example for one in examples])
        sources = torch.tensor([one.source for one in examples])
        return {**batch, RECORD_IDS: [one.record_id for one in examples], SOURCE_IDS: sources}

    def collate_packed(self, rows: Sequence[Sequence[LabelledExample]], length: int) -> Batch:
        batch = self.objective.collate_packed([[one.example for one in row] for row in rows], length)
        sources = torch.zeros(len(rows), length, dtype=torch.long)
        for number, row in enumerate(rows):
            start = 0
            for one in row:
                end = start + len(one.example.input_ids)
                sources[number, start:end] = one.source
                start = end
        ids = [one.record_id for row in rows for one in row]
        return {**batch, RECORD_IDS: ids, SOURCE_IDS: sources}

    def record_length(self, record: Record) -> int:
        return self.objective.record_length(record)


def take_labels(batch: Batch) -> tuple[Batch, list[str], torch.Tensor | None]:
    """A batch without its labels, the ids of its records, and the numbers of its sources."""
    rest = {key: value for key, value in batch.items() if key not in (RECORD_IDS, SOURCE_IDS)}
    return rest, batch.get(RECORD_IDS, []), batch.get(SOURCE_IDS)
