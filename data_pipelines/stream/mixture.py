"""Which record comes when: a weighted mixture of sources that is a pure function of (seed, draw number).

Nothing is stored between steps: draw ``n`` of the run always names the same record, so a run resumes
exactly by knowing its step, ranks are disjoint by construction and take the same number of steps, whatever
the shard sizes. Every source is walked in shuffled epochs, so within an epoch no record comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...common.errors import UserError
from ...common.values import finite_number, whole_number

_BLOCK = 1 << 16  # draws whose sources are chosen at once; the choice of a block depends on its number only


@dataclass(frozen=True)
class Draw:
    """One position in the stream: ``number`` (global, from 0), the source, and the record's index in it."""

    number: int
    source: int
    index: int


class Mixture:
    """Deterministic draws from weighted sources.

    Args:
        lengths: number of records of each source.
        weights: relative shares, one per source.
        seed: draws of different seeds are unrelated.
        max_repeats: largest number of epochs of each source, None for no limit. A source that has reached it
            is not drawn any more; its share goes to the others in proportion to theirs.

    Errors:
        UserError for an empty source, for a weight or limit that is not above 0, or where every source is
            limited: the stream has no end.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        seed: int,
        max_repeats: Sequence[float | None] | None = None,
    ) -> None:
        if len(lengths) != len(weights) or not lengths:
            raise UserError(
                f"mixture: {len(lengths)} sources and {len(weights)} weights; give one weight per source"
            )
        for number, length in enumerate(lengths):
            if whole_number(length, f"mixture: records of source number {number}") < 1:
                raise UserError(f"mixture: source number {number} holds no record; remove it or fill it")
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
        self.limits = [
            None if limit is None else int(limit * length)
            for limit, length in zip(limits, lengths, strict=True)
        ]
        self.seed = seed
        self._block = -1
        self._sources = np.empty(0, dtype=np.int64)
        self._ordinals = np.empty(0, dtype=np.int64)
        self._seen = [np.zeros(len(lengths), dtype=np.int64)]  # records of each source drawn before block b
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def draw(self, number: int) -> Draw:
        block, offset = divmod(number, _BLOCK)
        if block != self._block:
            self._load_block(block)
        source = int(self._sources[offset])
        epoch, position = divmod(int(self._ordinals[offset]), self.lengths[source])
        return Draw(number, source, int(self._order(source, epoch)[position]))

    def _choose(self, block: int) -> np.ndarray:
        """The sources of a block's draws; needs the counts of all blocks before it."""
        points = np.random.default_rng((self.seed, 0, block)).random(_BLOCK)
        seen = self._seen[block]
        room = [None if limit is None else limit - int(n) for limit, n in zip(self.limits, seen, strict=True)]
        ended = {source for source, left in enumerate(room) if left is not None and left <= 0}
        chosen = self._place(points, ended)
        while (end := _first_end(chosen, room, ended)) is not None:
            # The same points among the sources that are left, so that what came before stays as it is.
            source, after = end
            ended.add(source)
            chosen[after:] = self._place(points[after:], ended)
        return chosen

    def _place(self, points: np.ndarray, ended: set[int]) -> np.ndarray:
        """Points of [0, 1) to sources by their shares, without the `ended` ones."""
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

    def _order(self, source: int, epoch: int) -> np.ndarray:
        cached = self._orders.get(source)
        if cached is None or cached[0] != epoch:
            rng = np.random.default_rng((self.seed, 1, source, epoch))
            cached = (epoch, rng.permutation(self.lengths[source]))
            self._orders[source] = cached
        return cached[1]


def _first_end(chosen: np.ndarray, room: Sequence[int | None], ended: set[int]) -> tuple[int, int] | None:
    """(source, draws up to and with its last one) of the source that first overruns its room, if any does."""
    ends = []
    for source, left in enumerate(room):
        if left is not None and source not in ended:
            indices = np.flatnonzero(chosen == source)
            if len(indices) > left:
                ends.append((int(indices[left - 1]) + 1, source))
    if not ends:
        return None
    after, source = min(ends)
    return source, after


@dataclass(frozen=True)
class BatchPlan:
    """How draws become the micro-batches of one rank.

    A *window* is ``sort_window`` micro-batches of every rank. Its draws are dealt to the ranks in turn;
    each rank sorts its share by ``length``, cuts it into micro-batches, and visits them in a shuffled order.
    ``sort_window=1`` keeps the draw order.
    """

    mixture: Mixture
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1
    sort_window: int = 1
    length: Callable[[Draw], int] | None = None

    def batches(self, start: int = 0) -> Iterator[list[Draw]]:
        """Micro-batches from number ``start`` on, without end."""
        window, offset = divmod(start, self.sort_window)
        while True:
            yield from self._window(window)[offset:]
            window, offset = window + 1, 0

    def _window(self, window: int) -> list[list[Draw]]:
        size = self.sort_window * self.micro_batch_size
        first = window * size * self.world_size + self.rank
        draws = [self.mixture.draw(first + i * self.world_size) for i in range(size)]
        if self.sort_window > 1 and self.length is not None:
            draws.sort(key=self.length)
        batches = [draws[i : i + self.micro_batch_size] for i in range(0, size, self.micro_batch_size)]
        if self.sort_window > 1:
            # The same order on every rank: ranks then hold batches of like length at the same time.
            order = np.random.default_rng((self.mixture.seed, 2, window)).permutation(len(batches))
            batches = [batches[i] for i in order]
        return batches
