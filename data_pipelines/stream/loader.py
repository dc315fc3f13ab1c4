"""From a batch plan to tensors: records are read, turned into model input, and collated, one record a row.

All of it happens in worker processes if asked. A record that cannot be used is counted and named, and another
one replaces it. Which one follows from the draw alone, so that a resumed run skips and takes the
same records.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...common.errors import UserError, first_line
from ..records import Record
from .mixture import BatchPlan, Draw
from .statistics import BatchFacts, Skip, StreamStatistics, batch_positions, example_length

_ATTEMPTS = 32  # other records of the same source that are tried instead of an unusable one
#: What a record that cannot be used raises.
UNUSABLE = (OSError, ValueError)


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


@dataclass(frozen=True)
class _Attempt:
    """The example of a draw, None where no record could replace it, and the records skipped."""

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
            except UNUSABLE as error:
                skips.append(Skip(source, index, first_line(error)))
        return _Attempt(None, skips)  # an error of a worker process would come as a traceback

    def _candidates(self, draw: Draw) -> Iterator[tuple[int, int]]:
        """The drawn record; then others of its source, then some of every other source.

        They are far apart, as a lost shard is a run of neighbours.
        """
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
        UserError where no record of dozens of every source can be used.
    """
    statistics = statistics or unnamed_statistics(sources)
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
    """Kill workers at the end of a process: multiprocessing would wait for those that ignore SIGTERM."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


@dataclass(frozen=True)
class _Resumable:
    plan: BatchPlan
    start: int

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.plan.batches(self.start)


def unnamed_statistics(sources: Sequence[RecordSource]) -> StreamStatistics:
    """Statistics that name sources by their numbers."""
    return StreamStatistics([str(number) for number in range(len(sources))])
