"""Pack several records into rows of a fixed length, so that hardly any position is padding.

A *window* is a fixed number of draws, packed independently of all others. Its draws are a pure function of
its number, so the position in the stream is (window, row), for any number of workers, with the rows that
remain of that window: a record that could not be read when it was packed may be readable later, and would
then be packed too. The windows are dealt to the ranks in turn.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from ...common.errors import UserError
from ...common.json_files import take_count, take_list

#: Rows of a window, by the keys of their examples: a draw's number, plus `PIECE` for every piece of the same
#: record before this one.
Rows = tuple[tuple[int, ...], ...]
PIECE = 1 << 40
MOST_PIECES = 1 << 12


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
    """The rows of `pack`, shuffled by window: otherwise long records would come first."""
    rows = pack(lengths, capacity)
    order = np.random.default_rng((seed, 3, window)).permutation(len(rows))
    return [rows[i] for i in order]


class Cursor(NamedTuple):
    """A position in the windows of one rank.

    Args:
        ordinal: counts the windows of this rank.
        row: the next one in that window.
        rows: those that remain of that window; None where it was not packed yet.
    """

    ordinal: int = 0
    row: int = 0
    rows: Rows | None = None


START = Cursor()


@dataclass(frozen=True)
class WindowPlan:
    """The windows that one rank packs: its part of `leftovers`, then every `world_size`-th from `first`.

    Leftovers are (window, first row) pairs that a run with another number of ranks had not finished.
    `layouts` holds the remaining rows of windows that were packed before, by window.
    """

    rank: int = 0
    world_size: int = 1
    first: int = 0
    leftovers: tuple[tuple[int, int], ...] = ()
    layouts: Mapping[int, Rows] = field(default_factory=dict)

    def window(self, ordinal: int) -> tuple[int, int]:
        """(window number, first row) of this rank's window `ordinal`."""
        dealt = self.leftovers[self.rank :: self.world_size]
        if ordinal < len(dealt):
            return dealt[ordinal]
        return self.first + self.rank + (ordinal - len(dealt)) * self.world_size, 0

    def windows(self, ordinal: int) -> Iterator[tuple[int, int]]:
        """(window number, first row) from `ordinal` on, without end."""
        return map(self.window, count(ordinal))


def plan_state(plan: WindowPlan, cursors: Sequence[Cursor]) -> dict[str, Any]:
    """The plan and the cursors of all ranks for a checkpoint; the same on every rank."""
    layouts = dict(plan.layouts)
    for rank, cursor in enumerate(cursors):
        if cursor.rows is not None:
            layouts[replace(plan, rank=rank).window(cursor.ordinal)[0]] = cursor.rows
    return {
        "world_size": plan.world_size,
        "first": plan.first,
        "leftovers": [list(pair) for pair in plan.leftovers],
        "cursors": [[cursor.ordinal, cursor.row] for cursor in cursors],
        "layouts": [[window, [list(row) for row in rows]] for window, rows in sorted(layouts.items())],
    }


def resumed_plan(state: Mapping[str, Any], rank: int, world_size: int) -> tuple[WindowPlan, Cursor]:
    """The plan and cursor with which a rank resumes from `plan_state`. UserError for an invalid state.

    With the same number of ranks, every rank continues in its windows. With another number, the rows that
    were not delivered are dealt to the new ranks: each is delivered exactly once.
    """
    where = "the checkpoint's position in the data"
    leftovers, cursors = (_pairs(state, name, where) for name in ("leftovers", "cursors"))
    first, layouts = take_count(state, "first", where), _layouts(state, where)
    if take_count(state, "world_size", where) != len(cursors) or not cursors:
        raise UserError(f"{where}: world_size is {state['world_size']}, but there are {len(cursors)} cursors")
    plans = [WindowPlan(r, len(cursors), first, tuple(leftovers), layouts) for r in range(len(cursors))]
    if world_size == len(cursors):
        ordinal, row = cursors[rank]
        return plans[rank], Cursor(ordinal, row, layouts.get(plans[rank].window(ordinal)[0]))
    return redeal(plans, cursors, rank, world_size), START


def _pairs(state: Mapping[str, Any], name: str, where: str) -> list[tuple[int, int]]:
    def is_pair(pair: Any) -> bool:
        return _are_counts(pair) and len(pair) == 2

    return [(first, second) for first, second in take_list(state, name, is_pair, "pairs of integers", where)]


def _layouts(state: Mapping[str, Any], where: str) -> dict[int, Rows]:
    """The remaining rows by window. Checkpoints of earlier versions have none."""

    def is_layout(item: Any) -> bool:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[1], list)):
            return False
        return _are_counts(item[:1]) and all(map(_are_counts, item[1]))

    found = take_list({"layouts": [], **state}, "layouts", is_layout, "windows with their rows", where)
    return {window: tuple(map(tuple, rows)) for window, rows in found}


def _are_counts(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(type(n) is int and 0 <= n < 2**53 for n in values)


def redeal(
    plans: Sequence[WindowPlan], cursors: Sequence[tuple[int, int]], rank: int, world_size: int
) -> WindowPlan:
    """The plan of one of `world_size` ranks for the rows that `plans` at `cursors` have not delivered."""
    # No rank has taken a window beyond the one that the foremost rank would take next.
    ahead = [plan.window(ordinal)[0] for plan, (ordinal, _) in zip(plans, cursors, strict=True)]
    first = max([plans[0].first, *(number + 1 for number in ahead)])
    unfinished: list[tuple[int, int]] = []
    for plan, (ordinal, row) in zip(plans, cursors, strict=True):
        dealt = len(plan.leftovers[plan.rank :: plan.world_size])
        for number, (window, start) in enumerate(plan.windows(ordinal)):
            if window >= first and ordinal + number >= dealt:
                break
            unfinished.append((window, max(start, row) if number == 0 else start))
    packed = plans[0].layouts
    layouts = {window: packed[window] for window, _ in unfinished if window in packed}
    return WindowPlan(rank, world_size, first, tuple(sorted(unfinished)), layouts)
