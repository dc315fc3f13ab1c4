"""Several records one after another in rows of a fixed length, so that hardly a position is padding.

A *window* is a fixed number of draws, packed independently of all others. What a window holds is a pure
function of its number, so the position in the stream is two numbers, (window, row), whatever the number of
workers; the windows are dealt to the ranks in turn.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...common.errors import UserError
from ...common.json_files import take_count, take_list


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best fit, longest first: indices of `lengths` in rows whose lengths add up to `capacity` at most.

    Deterministic; the items of a row keep their order. Raises ValueError for a length above the capacity.
    """
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free positions, row), ascending
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[item]
        if need > capacity:
            raise ValueError(f"length {need} does not fit a row of {capacity}")
        position = bisect.bisect_left(space, (need, -1))
        if position == len(space):
            free, row = capacity, len(rows)
            rows.append([])
        else:
            free, row = space.pop(position)
        rows[row].append(item)
        bisect.insort(space, (free - need, row))
    return [sorted(row) for row in rows]


def shuffled_rows(lengths: Sequence[int], capacity: int, seed: int, window: int) -> list[list[int]]:
    """The rows of `pack` in a random order of this window's own: long records would else come first."""
    rows = pack(lengths, capacity)
    order = np.random.default_rng((seed, 3, window)).permutation(len(rows))
    return [rows[i] for i in order]


@dataclass(frozen=True)
class WindowPlan:
    """Which windows one rank packs: first its part of `leftovers`, then every `world_size`-th from `first`.

    Leftovers are (window, first row) pairs that another number of ranks had not finished; see `redeal`.
    A *cursor* is (ordinal, row): the ordinal counts this rank's own windows.
    """

    rank: int = 0
    world_size: int = 1
    first: int = 0
    leftovers: tuple[tuple[int, int], ...] = ()

    def window(self, ordinal: int) -> tuple[int, int]:
        """(window number, first row) of this rank's window `ordinal`."""
        own = self.leftovers[self.rank :: self.world_size]
        if ordinal < len(own):
            return own[ordinal]
        return self.first + self.rank + (ordinal - len(own)) * self.world_size, 0

    def windows(self, ordinal: int) -> Iterator[tuple[int, int]]:
        """(window number, first row) from `ordinal` on, without end."""
        while True:
            yield self.window(ordinal)
            ordinal += 1


def plan_state(plan: WindowPlan, cursors: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """What a checkpoint keeps of the plan and the cursors of all ranks; the same on every rank."""
    return {
        "world_size": plan.world_size,
        "first": plan.first,
        "leftovers": [list(pair) for pair in plan.leftovers],
        "cursors": [list(cursor) for cursor in cursors],
    }


def resumed_plan(state: Mapping[str, Any], rank: int, world_size: int) -> tuple[WindowPlan, tuple[int, int]]:
    """The plan and cursor with which a rank resumes from `plan_state`.

    With as many ranks as then, every rank continues in its own windows. With another number the rows that
    were not delivered are dealt anew: none comes twice, none is lost.

    Errors:
        UserError for what `plan_state` has not made.
    """
    where = "the checkpoint's position in the data"
    leftovers, cursors = (_pairs(state, name, where) for name in ("leftovers", "cursors"))
    first = take_count(state, "first", where)
    if take_count(state, "world_size", where) != len(cursors) or not cursors:
        raise UserError(f"{where}: world_size is {state['world_size']}, but there are {len(cursors)} cursors")
    plans = [WindowPlan(r, len(cursors), first, tuple(leftovers)) for r in range(len(cursors))]
    if world_size == len(cursors):
        return plans[rank], cursors[rank]
    return redeal(plans, cursors, rank, world_size), (0, 0)


def _pairs(state: Mapping[str, Any], name: str, where: str) -> list[tuple[int, int]]:
    def is_pair(pair: Any) -> bool:
        return (
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and all(type(number) is int and 0 <= number < 2**53 for number in pair)
        )

    pairs = take_list(state, name, is_pair, "pairs of integers", where)
    return [(first, second) for first, second in pairs]


def redeal(
    plans: Sequence[WindowPlan], cursors: Sequence[tuple[int, int]], rank: int, world_size: int
) -> WindowPlan:
    """The plan of one of `world_size` ranks for all that `plans` at `cursors` have not delivered."""
    # Beyond the window that the foremost rank would take next, no rank has taken any.
    ahead = [plan.window(ordinal)[0] for plan, (ordinal, _) in zip(plans, cursors, strict=True)]
    first = max([plans[0].first, *(number + 1 for number in ahead)])
    unfinished: list[tuple[int, int]] = []
    for plan, (ordinal, row) in zip(plans, cursors, strict=True):
        own = len(plan.leftovers[plan.rank :: plan.world_size])
        for number, (window, start) in enumerate(plan.windows(ordinal)):
            if window >= first and ordinal + number >= own:
                break
            unfinished.append((window, max(start, row) if number == 0 else start))
    return WindowPlan(rank, world_size, first, tuple(sorted(unfinished)))
