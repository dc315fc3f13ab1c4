"""From a batch plan to tensors: records are read, turned into model inputs, and collated, one record per row.

With `num_workers` all of it happens in worker processes. A record that cannot be used is counted and logged,
and another one replaces it; which one follows from the draw alone, so that a resumed run uses the same.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...common.errors import UserError, first_line
from ..records import Record
from ..shards.retries import Retry, collecting_retries
from ..workers import STOP_SIGNALS, loader_context
from .mixture import BatchPlan, Draw
from .statistics import BatchFacts, Skip, StreamStatistics, batch_positions, example_length

_ATTEMPTS = 32  # replacements tried per source for one unusable record
#: The errors of a record that cannot be used.
UNUSABLE = (OSError, ValueError)


class RecordSource(Protocol):
    """A sequence of records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclass(frozen=True)
class Example:
    """A model-ready example with the id of its record, the number of the record's source, and its draw.

    In packed rows `draw` also has the number of the piece (`packing.PIECE`) where a record is split.
    """

    value: Any
    record_id: str
    source: int
    draw: int


@dataclass(frozen=True)
class StreamBatch:
    """A collated batch (`inputs`) and the ids of its records.

    source_ids: the source number of each example (B,), or of each position (B, L) where several records share
    a row. Padding has 0.
    """

    inputs: Any
    record_ids: list[str]
    source_ids: Tensor


#: The example of a draw, None where no record could replace it; the records skipped, and read again.
_Attempt = tuple[Example | None, list[Skip], list[Retry]]


@dataclass(frozen=True)
class _Examples(Dataset[Any]):
    """Maps a Draw to a model-ready example; an unusable record is replaced by another one."""

    sources: Sequence[RecordSource]
    prepare: Callable[[Record, int], Any]

    def __getitem__(self, draw: Draw) -> _Attempt:
        skips: list[Skip] = []
        with collecting_retries() as retries:
            for source, index in self._candidates(draw):
                try:
                    record = self.sources[source][index]
                    value = self.prepare(record, draw.number)
                    return Example(value, record.id, source, draw.number), skips, retries
                except UNUSABLE as error:
                    skips.append(Skip(source, index, first_line(error)))
        return None, skips, retries  # an error raised in a worker would be reported with its traceback

    def _candidates(self, draw: Draw) -> Iterator[tuple[int, int]]:
        """The record of the draw, then random ones of its source, then of every other source."""
        # Random, not neighbours: a lost shard is a run of neighbours.
        yield draw.source, draw.index
        rng = np.random.default_rng((4, draw.number))
        for offset in range(len(self.sources)):
            source = (draw.source + offset) % len(self.sources)
            for index in rng.integers(len(self.sources[source]), size=_ATTEMPTS):
                yield source, int(index)


def _collated(
    collate: Callable[[list[Any]], Any], attempts: list[_Attempt]
) -> tuple[StreamBatch | None, BatchFacts]:
    skips = [skip for _, skipped, _ in attempts for skip in skipped]
    retries = [retry for _, _, retried in attempts for retry in retried]
    examples = [example for example, _, _ in attempts if example is not None]
    if len(examples) < len(attempts):
        return None, BatchFacts(skips=skips, retries=retries)
    inputs = collate([example.value for example in examples])
    facts = batch_facts(inputs, examples, skips, retries)
    return StreamBatch(
        inputs, [example.record_id for example in examples], torch.tensor(facts.sources)
    ), facts


def batch_facts(
    inputs: Any,
    examples: Sequence[Example],
    skips: Sequence[Skip] = (),
    retries: Sequence[Retry] = (),
) -> BatchFacts:
    """What the collated `inputs` were made of, for the statistics."""
    lengths = [example_length(example.value) for example in examples]
    sources = [example.source for example in examples]
    return BatchFacts(batch_positions(inputs), sources, lengths, list(skips), list(retries))


def example_batches(
    plan: BatchPlan,
    sources: Sequence[RecordSource],
    prepare: Callable[[Record, int], Any],
    collate: Callable[[list[Any]], Any],
    start: int = 0,
    num_workers: int = 0,
    statistics: StreamStatistics | None = None,
) -> Iterator[StreamBatch]:
    """Endless collated micro-batches of one rank, from micro-batch number `start` on.

    Args:
        prepare: makes an example of a record and the draw number, which must be its only source of
            randomness, so that a resumed run prepares the same examples.
        collate: makes a batch of a list of examples.
        statistics: counts the batches; without it skipped records are only logged.

    Errors:
        UserError where dozens of records of every source cannot be used.
    """
    statistics = statistics or unnamed_statistics(sources)
    loader = DataLoader(
        _Examples(sources, prepare),
        batch_sampler=plan.batches(start),
        collate_fn=partial(_collated, collate),
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=ignore_stop_signals,
        multiprocessing_context=loader_context() if num_workers else None,
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
    """Leave SIGTERM and SIGINT to the training process, which needs its workers to finish the current step.

    Schedulers and terminals signal every process; workers end with their loader.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    """Kill workers at the end of the process: multiprocessing would wait for them, as they ignore SIGTERM."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


def unnamed_statistics(sources: Sequence[RecordSource]) -> StreamStatistics:
    """Statistics that name the sources by number."""
    return StreamStatistics([str(number) for number in range(len(sources))])
