"""The mean of every loss between two log lines, over all processes and for each source of data."""

from __future__ import annotations

import math
from collections import Counter

import torch

from ...common.errors import UserError
from ..backend.distributed import World
from ..objectives import LossTerm, Objective
from ..objectives.base import Batch

SourceSums = dict[str, torch.Tensor]


class LossMeter:
    """Means of every loss term between two log lines, over all ranks; reading costs one all-reduce.

    Args:
        sources: names of the sources of data, in the order of a batch's ``source_ids``.
    """

    def __init__(self, world: World, sources: list[str] | None = None) -> None:
        self.world, self.sources = world, sources or []
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: Counter[str] = Counter()
        self.by_source: SourceSums = {}

    def add(self, terms: dict[str, LossTerm], by_source: SourceSums | None = None) -> None:
        """The terms of one local micro-batch, and `Objective.source_sums` of it."""
        for name, term in terms.items():
            total = term.total.detach().double()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        for name, sums in (by_source or {}).items():
            self.by_source[name] = self.by_source[name] + sums if name in self.by_source else sums

    def add_counts(self, counts: dict[str, float]) -> None:
        """The step's targets over all ranks."""
        self.counts.update(counts)

    def read(self, step: int) -> dict[str, float]:
        """The means since the last reading, by term and by term/source; errors as in `check`."""
        totals = self.check(step)
        means = {name: total / max(self.counts[name], 1.0) for name, total in totals.items()}
        means |= self._read_sources()
        self._reset()
        return means

    def _read_sources(self) -> dict[str, float]:
        """Mean of every term over each source's targets, where it had any."""
        means = {}
        for name in sorted(self.by_source):
            sums, counts = self.world.sum(self.by_source[name]).tolist()
            for source, total, count in zip(self.sources, sums, counts, strict=True):
                if count:
                    means[f"{name}/{source}"] = total / count
        return means

    def check(self, step: int) -> dict[str, float]:
        """The sums so far, over all ranks. Call it before a checkpoint: what is no number never recovers.

        Errors:
            UserError naming the losses that are infinite or not a number, on every rank.
        """
        if not self.sums:
            return {}
        names = sorted(self.sums)
        values = self.world.sum(torch.stack([self.sums[name] for name in names])).tolist()
        totals = dict(zip(names, values, strict=True))
        wrong = [f"loss/{name}" for name, total in totals.items() if not math.isfinite(total)]
        if wrong:
            raise UserError(
                f"{', '.join(wrong)} became infinite or not a number shortly before step {step}; the "
                "checkpoints are from before: start again with a lower optimizer.lr or "
                "optimizer.gradient_clipping, or look for broken numbers in data.sources"
            )
        return totals


def global_counts(objective: Objective, batches: list[Batch], world: World) -> dict[str, float]:
    """Targets of every term over these micro-batches and all ranks."""
    local = [objective.target_counts(batch) for batch in batches]
    names = list(local[0])
    totals = torch.tensor([sum(counts[name] for counts in local) for name in names], dtype=torch.float64)
    totals = world.sum(totals.to(world.device) if world.device.type == "cuda" else totals)
    return dict(zip(names, totals.tolist(), strict=True))
