"""One registry of a run's metrics, which are reduced over all processes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .backend.distributed import World

Number = float | Tensor


@dataclass
class _Entry:
    reduce: Literal["mean", "sum", "max", "main"]
    value: Number
    count: Number
    is_vector: bool


class Metrics:
    """Metrics accumulated between two calls of `read`, over all processes.

    Recording never waits for a GPU: tensors are accumulated on their device. Reading costs one all-reduce.
    All processes must record the same names.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._entries: dict[tuple[str, ...], _Entry] = {}

    def record(
        self,
        name: str | Sequence[str],
        value: Number,
        count: Number = 1.0,
        reduce: Literal["mean", "sum", "max", "main"] = "mean",
    ) -> None:
        """Record a number, or a vector (S,) with a name for each element.

        Args:
            count: for a mean, the number of targets that `value` is the sum over, in the shape of `value`.
            reduce: "mean" is the sum of all values over the sum of all counts; without any target it is 0
                for a number, and left out for an element of a vector. "sum" and "max" are over all
                processes, "main" is the main process's last value.
        """
        key = (name,) if isinstance(name, str) else tuple(name)
        value, count = (n.detach().double() if isinstance(n, Tensor) else n for n in (value, count))
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = _Entry(reduce, value, count, not isinstance(name, str))
        elif reduce == "main":
            entry.value = value
        elif reduce == "max":
            entry.value = max(entry.value, value)
        else:
            entry.value, entry.count = entry.value + value, entry.count + count

    def read(self, reset: bool = True) -> dict[str, float]:
        """The reduced metrics by name, sorted; `reset` starts anew. Every process calls this."""
        entries = sorted(self._entries.items())
        vectors = [self._summands(entry) for _, entry in entries]
        totals = self._world.sum(torch.cat(vectors)).tolist() if any(map(len, vectors)) else []
        values: dict[str, float] = {}
        for (names, entry), vector in zip(entries, vectors, strict=True):
            values |= _reduced(names, entry, totals[: len(vector)])
            totals = totals[len(vector) :]
        if reset:
            self._entries = {}
        return dict(sorted(values.items()))

    def _summands(self, entry: _Entry) -> Tensor:
        """The vector of an entry that is summed over all processes."""
        if entry.reduce == "main":
            return torch.zeros(0, dtype=torch.float64, device=self._world.device)
        value, count = (
            torch.as_tensor(n, dtype=torch.float64, device=self._world.device).reshape(-1)
            for n in (entry.value, entry.count)
        )
        if entry.reduce == "mean":
            return torch.cat((value, count))
        if entry.reduce == "max":  # one slot for each process
            return torch.nn.functional.pad(value, (self._world.rank, self._world.size - self._world.rank - 1))
        return value


def _reduced(names: tuple[str, ...], entry: _Entry, totals: list[float]) -> dict[str, float]:
    if entry.reduce == "mean":
        sums, counts = totals[: len(names)], totals[len(names) :]
        means = zip(names, sums, counts, strict=True)
        return {
            name: total / count if count else 0.0
            for name, total, count in means
            if count or not entry.is_vector
        }
    if entry.reduce == "main":
        return {names[0]: float(entry.value)}
    return {names[0]: max(totals)} if entry.reduce == "max" else dict(zip(names, totals, strict=True))
