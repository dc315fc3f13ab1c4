"""From a batch plan to tensors: records are read, turned into model input, and collated, in worker
processes if asked."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from .mixture import BatchPlan, Draw
from .records import Record

logger = logging.getLogger(__name__)


class RecordSource(Protocol):
    """Anything with a length that gives a Record by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@dataclass(frozen=True)
class _Examples(Dataset[Any]):
    """Maps a Draw to a model-ready example; a record that cannot be read is replaced by its neighbour and
    named."""

    sources: Sequence[RecordSource]
    prepare: Callable[[Record, int], Any]

    def __getitem__(self, draw: Draw) -> Any:
        source = self.sources[draw.source]
        for step in range(len(source)):
            index = (draw.index + step) % len(source)
            try:
                return self.prepare(source[index], draw.number)
            except (OSError, ValueError) as error:
                logger.warning("skipped record %d of source %d: %s", index, draw.source, error)
        raise RuntimeError(f"no readable record in source {draw.source}")


def example_batches(
    plan: BatchPlan,
    sources: Sequence[RecordSource],
    prepare: Callable[[Record, int], Any],
    collate: Callable[[list[Any]], Any],
    start: int = 0,
    num_workers: int = 0,
) -> Iterator[Any]:
    """Endless collated micro-batches of one rank, from micro-batch number ``start`` on.

    Args:
        prepare: makes an example of a record; its second argument is the draw number, the only source of
            randomness it may use, so that a resumed run prepares the same examples.
        collate: makes a batch of a list of examples.
    """
    loader = DataLoader(
        _Examples(sources, prepare),
        batch_sampler=_Resumable(plan, start),
        collate_fn=collate,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        persistent_workers=False,
        worker_init_fn=ignore_stop_signals,
    )
    return iter(loader)


def ignore_stop_signals(worker: int) -> None:
    """Leave SIGTERM and SIGINT to the training process, which still needs its workers for the step at hand.

    They reach workers as well where a scheduler or a terminal signals every process; workers end with their
    loader.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class _Resumable:
    plan: BatchPlan
    start: int

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.plan.batches(self.start)
