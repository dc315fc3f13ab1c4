"""Batches of packed rows: several records share a row, so that hardly any position is padding.

A record that cannot be used is counted, logged and left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from ...common.errors import UserError, first_line, shown
from ..records import Record
from .loader import (
    UNUSABLE,
    Example,
    RecordSource,
    StreamBatch,
    batch_facts,
    ignore_stop_signals,
    unnamed_statistics,
)
from .mixture import Draw, Mixture
from .packing import WindowPlan, shuffled_rows
from .statistics import BatchFacts, Skip, StreamStatistics, example_length

_EMPTY_WINDOWS = 8


@dataclass(frozen=True)
class Packing:
    """How rows are packed: `length` tokens per row, `window` draws packed together."""

    length: int
    window: int = 256


class _Window(NamedTuple):
    """The rows of one window, from `first_row` on."""

    ordinal: int
    first_row: int
    rows: list[list[Example]]
    skips: list[Skip]


@dataclass(frozen=True)
class _WindowDraws:
    ordinal: int
    number: int
    first_row: int
    draws: list[Draw]


@dataclass(frozen=True)
class _Windows(Dataset[Any]):
    """Maps the draws of a window to its packed rows."""

    sources: Sequence[RecordSource]
    prepare: Callable[[Record, int], Any]
    packing: Packing
    seed: int

    def __getitem__(self, window: _WindowDraws) -> _Window:
        examples: list[Example] = []
        skips: list[Skip] = []
        for draw in window.draws:
            try:
                examples.append(self._example(draw))
            except UNUSABLE as error:
                skips.append(Skip(draw.source, draw.index, first_line(error)))
        lengths = [example_length(example.value) for example in examples]
        packed = shuffled_rows(lengths, self.packing.length, self.seed, window.number)
        rows = [[examples[i] for i in row] for row in packed[window.first_row :]]
        return _Window(window.ordinal, window.first_row, rows, skips)

    def _example(self, draw: Draw) -> Example:
        record = self.sources[draw.source][draw.index]
        example = Example(self.prepare(record, draw.number), record.id, draw.source)
        if (length := example_length(example.value)) > (most := self.packing.length):
            raise ValueError(
                f"Record {shown(record.id)} has {length} tokens, more than data.pack_length {most}"
            )
        return example


def _window_draws(
    mixture: Mixture, plan: WindowPlan, size: int, cursor: tuple[int, int]
) -> Iterator[_WindowDraws]:
    start, row = cursor
    for ordinal, (number, first_row) in enumerate(plan.windows(start), start=start):
        draws = [mixture.draw(n) for n in range(number * size, (number + 1) * size)]
        yield _WindowDraws(ordinal, number, max(first_row, row if ordinal == start else 0), draws)


class PackedBatches:
    """Endless packed micro-batches of one rank; `cursor` is where the next one begins.

    A stream built with the `cursor` of another one resumes exactly there, with any number of workers.

    Args:
        prepare: as in `loader.example_batches`.
        collate: makes a batch of rows (lists of examples) and the row length.
        rows: the rows of one micro-batch.
        cursor: where to begin, see `WindowPlan`.

    Errors:
        UserError where several windows in succession hold no usable record.
    """

    def __init__(
        self,
        mixture: Mixture,
        plan: WindowPlan,
        packing: Packing,
        sources: Sequence[RecordSource],
        prepare: Callable[[Record, int], Any],
        collate: Callable[[list[list[Any]], int], Any],
        rows: int,
        cursor: tuple[int, int] = (0, 0),
        num_workers: int = 0,
        statistics: StreamStatistics | None = None,
    ) -> None:
        self.cursor = cursor
        self._packing, self._collate, self._num_rows = packing, collate, rows
        self._statistics = statistics or unnamed_statistics(sources)
        self._waiting: deque[tuple[int, int, list[Example]]] = deque()
        self._windows: Iterator[_Window] = iter(
            DataLoader(
                _Windows(sources, prepare, packing, mixture.seed),
                sampler=_window_draws(mixture, plan, packing.window, cursor),
                batch_size=None,
                collate_fn=_identity,
                num_workers=num_workers,
                prefetch_factor=2 if num_workers else None,
                worker_init_fn=ignore_stop_signals,
            )
        )

    def __iter__(self) -> Iterator[StreamBatch]:
        return self

    def __next__(self) -> StreamBatch:
        while len(self._waiting) < self._num_rows:
            self._take_window()
        taken = [self._waiting.popleft() for _ in range(self._num_rows)]
        ordinal = taken[-1][0]
        # The row after the last one; past the end of a window it is the beginning of the next.
        self.cursor = self._waiting[0][:2] if self._waiting else (ordinal + 1, 0)
        rows = [examples for _, _, examples in taken]
        inputs = self._collate([[example.value for example in row] for row in rows], self._packing.length)
        examples = [example for row in rows for example in row]
        self._statistics.add(batch_facts(inputs, examples))
        source_ids = torch.zeros(len(rows), self._packing.length, dtype=torch.long)
        for number, row in enumerate(rows):
            lengths = torch.tensor([example_length(example.value) for example in row])
            sources = torch.tensor([example.source for example in row]).repeat_interleave(lengths)
            source_ids[number, : len(sources)] = sources
        return StreamBatch(inputs, [example.record_id for example in examples], source_ids)

    def _take_window(self) -> None:
        for _ in range(_EMPTY_WINDOWS):
            window = next(self._windows)
            self._statistics.add(BatchFacts(skips=window.skips))
            if window.rows:
                self._waiting.extend(
                    (window.ordinal, window.first_row + number, row) for number, row in enumerate(window.rows)
                )
                return
        raise UserError(
            f"no record of the last {_EMPTY_WINDOWS * self._packing.window} could be used; the last: "
            f"{window.skips[-1].reason if window.skips else 'no record was read'}"
        )


def _identity(window: Any) -> Any:
    return window
