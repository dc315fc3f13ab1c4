"""The mean of every loss between two log lines, over all processes."""

from __future__ import annotations

import math
from collections import Counter

import torch

from ..tokenizer.errors import UserError
from .distributed import World
from .objectives import LossTerm


class LossMeter:
    """Means of every loss term between two log lines, over all ranks; reading costs one all-reduce."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: Counter[str] = Counter()

    def add(self, terms: dict[str, LossTerm]) -> None:
        """The terms of one local micro-batch."""
        for name, term in terms.items():
            total = term.total.detach().double()
            self.sums[name] = self.sums[name] + total if name in self.sums else total

    def add_counts(self, counts: dict[str, float]) -> None:
        """The step's targets over all ranks."""
        self.counts.update(counts)

    def read(self, step: int) -> dict[str, float]:
        """The means since the last reading; errors as in `check`."""
        totals = self.check(step)
        means = {name: total / max(self.counts[name], 1.0) for name, total in totals.items()}
        self._reset()
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
