"""The samples of a job's parts, in chunks that are sent to worker processes."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator

from ..node_job import NodeJob
from .samples import Rejected, Sample

Samples = Iterator[Sample | Rejected]
#: (number of the part, samples).
Chunk = tuple[int, list[Sample | Rejected]]

_CHUNK = 32  # samples sent to a worker process together


def all_chunks(samples: Samples, size: int, first: int) -> Iterator[Chunk]:
    """The chunks of parts of `size` samples each; part number `first` begins with the first of `samples`."""
    for number in itertools.count(first):
        has_samples = False
        for chunk in _chunks(number, itertools.islice(samples, size)):
            has_samples = True
            yield chunk
        if not has_samples:
            return


def node_chunks(
    job: NodeJob, seeks: bool, samples_from: Callable[[int], Samples], size: int
) -> Iterator[Chunk]:
    """The chunks of a node's unfinished parts; afterwards `job.count` is that of a part without samples.

    Args:
        seeks: `samples_from(start)` is fast; otherwise all samples are listed once.
    """
    chunks = _seeking(job, samples_from, size) if seeks else _passing(job, samples_from(0), size)
    job.count = yield from chunks


def _seeking(job: NodeJob, samples_from: Callable[[int], Samples], size: int) -> Generator[Chunk, None, int]:
    for number in job.numbers():
        if job.is_finished(number):
            continue
        has_samples = False
        for chunk in _chunks(number, itertools.islice(samples_from(number * size), size)):
            has_samples = True
            yield chunk
        if not has_samples:
            return number
    raise AssertionError("the numbers do not end")


def _passing(job: NodeJob, samples: Samples, size: int) -> Generator[Chunk, None, int]:
    for number in itertools.count():
        part = itertools.islice(samples, size)
        begin = list(itertools.islice(part, 1))
        if not begin:
            return number
        if number % job.node.count == job.node.index and not job.is_finished(number):
            yield from _chunks(number, itertools.chain(begin, part))
        else:
            deque(part, maxlen=0)
    raise AssertionError("the numbers do not end")


def _chunks(number: int, part: Samples) -> Iterator[Chunk]:
    while chunk := list(itertools.islice(part, _CHUNK)):
        yield number, chunk
