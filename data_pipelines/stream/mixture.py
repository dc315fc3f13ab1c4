"""The order of records: a weighted mixture of sources that is a pure function of (seed, draw number).

Nothing is stored between steps: draw `n` always names the same record, so a run resumes exactly from its step
number, ranks are disjoint by construction and take the same number of steps for any shard sizes. Every source
is read in shuffled epochs, each record once per epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice

import numpy as np

from ...common.errors import UserError
from ...common.values import finite_number, whole_number
from .order import Order, record_order

_BLOCK = 1 << 16  # draws whose sources are chosen at once


@dataclass(frozen=True)
class Draw:
    """One position in the stream: `number` (global, from 0), the source, and the record's index in it."""

    number: int
    source: int
    index: int


class Mixture:
    """Deterministic draws from weighted sources.

    Args:
        lengths: number of records of each source.
        weights: relative shares, one per source.
        seed: draws of different seeds are independent.
        max_repeats: the maximum number of epochs of each source, None for no limit. The share of a source
            that has reached it goes to the others in proportion to theirs.
        orders: of the records of each source (default: fully random).

    Errors:
        UserError for an empty source, a weight or limit that is not above 0, or if every source is limited.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        seed: int,
        max_repeats: Sequence[float | None] | None = None,
        orders: Sequence[Order] | None = None,
    ) -> None:
        if len(lengths) != len(weights) or not lengths:
            raise UserError(
                f"mixture: {len(lengths)} sources and {len(weights)} weights; give one weight per source"
            )
        for number, length in enumerate(lengths):
            if whole_number(length, f"mixture: records of source number {number}") < 1:
                raise UserError(f"mixture: source number {number} is empty; remove it or add records")
        limits = list(max_repeats or [None] * len(lengths))
        if all(limit is not None for limit in limits):
            raise UserError(
                "mixture: every source has max_repeats, so the data would end; leave it out for at least one"
            )
        for number, (weight, most) in enumerate(zip(weights, limits, strict=True)):
            finite_number(weight, f"mixture: weight {number}", above=0.0)
            if most is not None:
                finite_number(most, f"mixture: max_repeats {number}", most=1e9, above=0.0)
        total = finite_number(float(sum(weights)), "mixture: the sum of all weights")
        self.shares = np.asarray(weights, dtype=np.float64) / total
        self.lengths = list(lengths)
        # Records that may be drawn of each source.
        self.limits = [
            np.inf if most is None else int(most * length)
            for most, length in zip(limits, lengths, strict=True)
        ]
        self.seed = seed
        self._block = -1
        self._sources = self._ordinals = np.empty(0, dtype=np.int64)
        self._seen = [np.zeros(len(lengths), dtype=np.int64)]  # records of each source drawn before block b
        self.orders = list(
            orders or [record_order(length, seed, number) for number, length in enumerate(lengths)]
        )

    def draw(self, number: int) -> Draw:
        block, offset = divmod(number, _BLOCK)
        if block != self._block:
            self._load_block(block)
        source = int(self._sources[offset])
        epoch, position = divmod(int(self._ordinals[offset]), self.lengths[source])
        return Draw(number, source, self.orders[source].index(epoch, position))

    def _choose(self, block: int) -> np.ndarray:
        """The sources of a block's draws; needs the counts of all blocks before it."""
        points = np.random.default_rng((self.seed, 0, block)).random(_BLOCK)
        left = [limit - int(n) for limit, n in zip(self.limits, self._seen[block], strict=True)]
        ended = {source for source, number in enumerate(left) if number <= 0}
        chosen = self._assign(points, ended)
        while (end := _first_end(chosen, left, ended)) is not None:
            # The same points among the remaining sources, so that earlier draws stay as they are.
            after, source = end
            ended.add(source)
            chosen[after:] = self._assign(points[after:], ended)
        return chosen

    def _assign(self, points: np.ndarray, ended: set[int]) -> np.ndarray:
        """The sources of points in [0, 1) by their shares, without the `ended` ones."""
        shares = self.shares.copy()
        shares[list(ended)] = 0.0
        edges = shares.cumsum()
        return (edges / edges[-1]).searchsorted(points, side="right")

    def _load_block(self, block: int) -> None:
        while len(self._seen) <= block:
            counts = np.bincount(self._choose(len(self._seen) - 1), minlength=len(self.shares))
            self._seen.append(self._seen[-1] + counts)
        sources = self._choose(block)
        ordinals = np.empty_like(sources)
        for source, seen in enumerate(self._seen[block]):
            chosen = sources == source
            ordinals[chosen] = seen + np.arange(int(chosen.sum()))
        self._block, self._sources, self._ordinals = block, sources, ordinals


def _first_end(chosen: np.ndarray, left: Sequence[float], ended: set[int]) -> tuple[int, int] | None:
    """(number of draws until its last record, source) of the first source that runs out, if any does."""
    ends = []
    for source, number in enumerate(left):
        if source not in ended and np.isfinite(number):
            indices = np.flatnonzero(chosen == source)
            if len(indices) > number:
                ends.append((int(indices[int(number) - 1]) + 1, source))
    return min(ends, default=None)


@dataclass(frozen=True)
class BatchPlan:
    """How draws become the micro-batches of one rank.

    A *window* is `sort_window` micro-batches of every rank. Its draws are dealt to the ranks in turn; each
    rank sorts its share by `length`, cuts it into micro-batches, and shuffles these. `sort_window=1` keeps
    the draw order.

    Args:
        sorted_windows: the micro-batches, by draw numbers, of every sorted window so far. The lengths are as
            read at that time, so a run that resumes within a window takes its order from here.
    """

    mixture: Mixture
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1
    sort_window: int = 1
    length: Callable[[Draw], int] | None = None
    sorted_windows: dict[int, list[list[int]]] = field(default_factory=dict)

    @property
    def is_sorted(self) -> bool:
        return self.sort_window > 1 and self.length is not None

    def batches(self, start: int = 0) -> Iterator[list[Draw]]:
        """Micro-batches from number `start` on, without end."""
        window, offset = divmod(start, self.sort_window)
        return islice(chain.from_iterable(map(self._window, count(window))), offset, None)

    def numbers(self, window: int) -> range:
        """The numbers of this rank's draws of a window."""
        size = self.sort_window * self.micro_batch_size
        first = window * size * self.world_size + self.rank
        return range(first, first + size * self.world_size, self.world_size)

    def _window(self, window: int) -> list[list[Draw]]:
        if (known := self.sorted_windows.get(window)) is not None:
            return [[self.mixture.draw(number) for number in batch] for batch in known]
        draws = [self.mixture.draw(number) for number in self.numbers(window)]
        if self.length is not None and self.is_sorted:
            draws.sort(key=self.length)
        size = self.micro_batch_size
        batches = [draws[i : i + size] for i in range(0, len(draws), size)]
        if self.sort_window > 1:
            # The same order on every rank, so that ranks hold batches of similar length at the same time.
            order = np.random.default_rng((self.mixture.seed, 2, window)).permutation(len(batches))
            batches = [batches[i] for i in order]
        if self.is_sorted:
            self.sorted_windows[window] = [[draw.number for draw in batch] for batch in batches]
        return batches
