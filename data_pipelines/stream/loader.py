"""From a batch plan to tensors: records are read, turned into model input, and collated, in worker
processes if asked.

A record that cannot be used is counted and named, and the stream goes on: a plain batch takes another record
in its place, a packed row does without it. Which one is taken follows from the draw alone, so that a resumed
run skips and takes the same records.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...common.errors import UserError, first_line, shown
from ..records import Record
from .mixture import BatchPlan, Draw, Mixture
from .packing import WindowPlan, shuffled_rows
from .statistics import BatchFacts, Skip, StreamStatistics, batch_positions, example_length

_ATTEMPTS = 32  # other records of the same source that are tried in place of an unusable one
_EMPTY_WINDOWS = 8
_UNUSABLE = (OSError, ValueError)


class RecordSource(Protocol):
    """Anything with a length that gives a Record by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclass(frozen=True)
class Example:
    """A model-ready example with the id of its record and the number of the record's source."""

    value: Any
    record_id: str
    source: int


@dataclass(frozen=True)
class StreamBatch:
    """A collated batch and the records it was made of.

    Args:
        inputs: what the stream's `collate` made.
        record_ids: the ids of all its records.
        source_ids: the number of each example's source (B,), or of each position's (B, L) where several
            records share a row. Padding has 0.
    """

    inputs: Any
    record_ids: list[str]
    source_ids: Tensor


# --- plain batches: one record a row ----------------------------------------


@dataclass(frozen=True)
class _Attempt:
    """The example of a draw, None where no record could be used in its place, and the records skipped."""

    example: Example | None
    skips: list[Skip]


@dataclass(frozen=True)
class _Examples(Dataset[Any]):
    """Maps a Draw to a model-ready example; an unusable record is replaced by another one."""

    sources: Sequence[RecordSource]
    prepare: Callable[[Record, int], Any]

    def __getitem__(self, draw: Draw) -> _Attempt:
        skips: list[Skip] = []
        for source, index in self._candidates(draw):
            try:
                record = self.sources[source][index]
                return _Attempt(Example(self.prepare(record, draw.number), record.id, source), skips)
            except _UNUSABLE as error:
                skips.append(Skip(source, index, first_line(error)))
        return _Attempt(None, skips)  # an error of a worker process would come as a traceback

    def _candidates(self, draw: Draw) -> Iterator[tuple[int, int]]:
        """The drawn record; then others of its source, far apart as a lost shard is a run of neighbours;
        then some of every other source, should the whole source be lost."""
        yield draw.source, draw.index
        rng = np.random.default_rng((4, draw.number))
        for offset in range(len(self.sources)):
            source = (draw.source + offset) % len(self.sources)
            for index in rng.integers(len(self.sources[source]), size=_ATTEMPTS):
                yield source, int(index)


@dataclass(frozen=True)
class _Collate:
    collate: Callable[[list[Any]], Any]

    def __call__(self, attempts: list[_Attempt]) -> tuple[StreamBatch | None, BatchFacts]:
        skips = [skip for attempt in attempts for skip in attempt.skips]
        examples = [attempt.example for attempt in attempts if attempt.example is not None]
        if len(examples) < len(attempts):
            return None, BatchFacts(skips=skips)
        inputs = self.collate([example.value for example in examples])
        sources = [example.source for example in examples]
        batch = StreamBatch(inputs, [example.record_id for example in examples], torch.tensor(sources))
        lengths = [example_length(example.value) for example in examples]
        return batch, BatchFacts(batch_positions(inputs), sources, lengths, skips)


def example_batches(
    plan: BatchPlan,
    sources: Sequence[RecordSource],
    prepare: Callable[[Record, int], Any],
    collate: Callable[[list[Any]], Any],
    start: int = 0,
    num_workers: int = 0,
    statistics: StreamStatistics | None = None,
) -> Iterator[StreamBatch]:
    """Endless collated micro-batches of one rank, from micro-batch number ``start`` on.

    Args:
        prepare: makes an example of a record; its second argument is the draw number, the only source of
            randomness it may use, so that a resumed run prepares the same examples.
        collate: makes a batch of a list of examples.
        statistics: counts what is given out, and names what is skipped; without it skipped records are
            named in the log.

    Errors:
        UserError where no record can be used in place of a draw, of dozens of every source.
    """
    statistics = statistics or _unnamed(sources)
    loader = DataLoader(
        _Examples(sources, prepare),
        batch_sampler=_Resumable(plan, start),
        collate_fn=_Collate(collate),
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        persistent_workers=False,
        worker_init_fn=ignore_stop_signals,
    )
    for batch, facts in loader:
        statistics.add(facts)
        if batch is None:
            raise UserError(
                f"no record can be used among {len(facts.skips)} of all sources; the last: "
                f"{facts.skips[-1].reason}"
            )
        yield batch


def ignore_stop_signals(worker: int) -> None:
    """Leave SIGTERM and SIGINT to the training process, which still needs its workers for the step at hand.

    They reach workers as well where a scheduler or a terminal signals every process; workers end with their
    loader.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    """At the end of a process multiprocessing sends SIGTERM to workers still there, and waits for them; these
    would let it wait for ever.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


@dataclass(frozen=True)
class _Resumable:
    plan: BatchPlan
    start: int

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.plan.batches(self.start)


def _unnamed(sources: Sequence[RecordSource]) -> StreamStatistics:
    return StreamStatistics([str(number) for number in range(len(sources))])


# --- packed batches: several records a row ----------------------------------------


@dataclass(frozen=True)
class Packing:
    """How rows are packed: `length` tokens a row, `window` draws packed together."""

    length: int
    window: int = 256


@dataclass
class _Window:
    """The rows of one window, from `first_row` on."""

    ordinal: int
    first_row: int
    rows: list[list[Example]] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)


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
        result = _Window(window.ordinal, window.first_row)
        examples: list[Example] = []
        for draw in window.draws:
            try:
                examples.append(self._example(draw))
            except _UNUSABLE as error:
                result.skips.append(Skip(draw.source, draw.index, first_line(error)))
        lengths = [example_length(example.value) for example in examples]
        rows = shuffled_rows(lengths, self.packing.length, self.seed, window.number)
        result.rows = [[examples[i] for i in row] for row in rows[window.first_row :]]
        return result

    def _example(self, draw: Draw) -> Example:
        record = self.sources[draw.source][draw.index]
        example = Example(self.prepare(record, draw.number), record.id, draw.source)
        length = example_length(example.value)
        if length > self.packing.length:
            raise ValueError(
                f"Record {shown(record.id)} has {length} tokens, more than data.pack_length "
                f"{self.packing.length}"
            )
        return example


@dataclass(frozen=True)
class _WindowSampler:
    mixture: Mixture
    plan: WindowPlan
    size: int
    start: tuple[int, int]

    def __iter__(self) -> Iterator[_WindowDraws]:
        start, row = self.start
        for ordinal, (number, first_row) in enumerate(self.plan.windows(start), start=start):
            first = number * self.size
            draws = [self.mixture.draw(n) for n in range(first, first + self.size)]
            yield _WindowDraws(ordinal, number, max(first_row, row if ordinal == start else 0), draws)


class PackedBatches:
    """Endless packed micro-batches of one rank; `cursor` is where the next one begins.

    A stream built with another's `cursor` goes on exactly where that one stood, with any number of workers.

    Args:
        collate: makes a batch of rows (lists of examples) and the row length.
        rows: of one micro-batch.
        cursor: where to begin, see `WindowPlan`.

    Errors:
        UserError where windows in succession hold nothing that can be used.
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
        self._statistics = statistics or _unnamed(sources)
        self._waiting: deque[tuple[int, int, list[Example]]] = deque()
        self._windows: Iterator[_Window] = iter(
            DataLoader(
                _Windows(sources, prepare, packing, mixture.seed),
                sampler=_WindowSampler(mixture, plan, packing.window, cursor),
                batch_size=None,
                collate_fn=_as_it_is,
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
        self._statistics.add(
            BatchFacts(
                batch_positions(inputs),
                [example.source for example in examples],
                [example_length(example.value) for example in examples],
            )
        )
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
            f"{window.skips[-1].reason if window.skips else 'none drawn'}"
        )


def _as_it_is(window: Any) -> Any:
    return window
