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
from ..shards.retries import Retry, collecting_retries
from ..workers import loader_context
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
from .packing import MOST_PIECES, PIECE, START, Cursor, WindowPlan, shuffled_rows
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
    retries: list[Retry]


@dataclass(frozen=True)
class _WindowDraws:
    """The draws of a window, or of the rows (by keys) that remain of one that was packed before."""

    ordinal: int
    number: int
    first_row: int
    draws: list[Draw]
    rows: Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class _Windows(Dataset[Any]):
    """Maps the draws of a window to its packed rows."""

    sources: Sequence[RecordSource]
    prepare: Callable[[Record, int], Any]
    packing: Packing
    seed: int

    def __getitem__(self, window: _WindowDraws) -> _Window:
        examples: dict[int, Example] = {}  # by their keys
        skips: list[Skip] = []
        with collecting_retries() as retries:
            for draw in window.draws:
                try:
                    examples |= {example.draw: example for example in self._examples(draw)}
                except UNUSABLE as error:
                    skips.append(Skip(draw.source, draw.index, first_line(error)))
        packed = self._packed(window, list(examples.values())) if window.rows is None else window.rows
        rows = [[examples[number] for number in row if number in examples] for row in packed]
        return _Window(window.ordinal, window.first_row, [row for row in rows if row], skips, retries)

    def _packed(self, window: _WindowDraws, examples: list[Example]) -> list[list[int]]:
        lengths = [example_length(example.value) for example in examples]
        rows = shuffled_rows(lengths, self.packing.length, self.seed, window.number)
        return [[examples[i].draw for i in row] for row in rows[window.first_row :]]

    def _examples(self, draw: Draw) -> list[Example]:
        """The example of a draw, or the pieces of one that was too long."""
        record = self.sources[draw.source][draw.index]
        made = self.prepare(record, draw.number)
        pieces = made if isinstance(made, list) else [made]
        longest, most = max(map(example_length, pieces)), self.packing.length
        if longest > most:
            raise ValueError(
                f"Record {shown(record.id)} has {longest} tokens, more than data.pack_length {most}"
            )
        if len(pieces) > MOST_PIECES:
            raise ValueError(f"Record {shown(record.id)} has {len(pieces)} pieces; at most {MOST_PIECES} fit")
        keys = range(draw.number, draw.number + len(pieces) * PIECE, PIECE)
        return [Example(piece, record.id, draw.source, key) for key, piece in zip(keys, pieces, strict=True)]


def _window_draws(mixture: Mixture, plan: WindowPlan, size: int, cursor: Cursor) -> Iterator[_WindowDraws]:
    for ordinal, (number, first_row) in enumerate(plan.windows(cursor.ordinal), start=cursor.ordinal):
        is_begun = ordinal == cursor.ordinal
        numbers: Sequence[int] = range(number * size, (number + 1) * size)
        rows = cursor.rows if is_begun and cursor.rows is not None else plan.layouts.get(number)
        if rows is not None:
            packed = [key for row in rows for key in row]
            drawn = list(dict.fromkeys(key % PIECE for key in packed))
            if len(set(packed)) < len(packed) or not set(drawn) <= set(numbers):
                raise UserError(f"the checkpoint's position in the data: its rows are not of window {number}")
            numbers = drawn
        draws = [mixture.draw(n) for n in numbers]
        yield _WindowDraws(ordinal, number, max(first_row, cursor.row if is_begun else 0), draws, rows)


class PackedBatches:
    """Endless packed micro-batches of one rank; `cursor` is where the next one begins.

    A stream built with the `cursor` of another one resumes exactly there, with any number of workers.

    Args:
        prepare: as in `loader.example_batches`, or it makes a list: the pieces of a long record.
        collate: makes a batch of rows (lists of examples) and the row length.
        rows: the rows of one micro-batch.
        cursor: where to begin.

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
        cursor: Cursor = START,
        num_workers: int = 0,
        statistics: StreamStatistics | None = None,
    ) -> None:
        self._next = cursor  # where nothing is waiting
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
                multiprocessing_context=loader_context() if num_workers else None,
            )
        )

    @property
    def cursor(self) -> Cursor:
        """The row after the last delivered one; past the end of a window the beginning of the next."""
        if not self._waiting:
            return self._next
        # All of one window: the next one is taken only when too few rows are waiting for a batch.
        ordinal, row, _ = self._waiting[0]
        rows = tuple(tuple(example.draw for example in examples) for _, _, examples in self._waiting)
        return Cursor(ordinal, row, rows)

    def __iter__(self) -> Iterator[StreamBatch]:
        return self

    def __next__(self) -> StreamBatch:
        while len(self._waiting) < self._num_rows:
            self._take_window()
        taken = [self._waiting.popleft() for _ in range(self._num_rows)]
        self._next = Cursor(taken[-1][0] + 1)
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
            self._statistics.add(BatchFacts(skips=window.skips, retries=window.retries))
            if max(map(_length, window.rows), default=0) > self._packing.length:
                raise UserError("the checkpoint's position in the data: it holds rows that are too long")
            if window.rows:
                self._waiting.extend(
                    (window.ordinal, window.first_row + number, row) for number, row in enumerate(window.rows)
                )
                return
        raise UserError(
            f"no record of the last {_EMPTY_WINDOWS * self._packing.window} could be used; the last: "
            f"{window.skips[-1].reason if window.skips else 'no record was read'}"
        )


def _length(row: list[Example]) -> int:
    return sum(example_length(example.value) for example in row)


def _identity(window: Any) -> Any:
    return window
