"""The mean of every loss between two log lines, over all processes and by data source."""

from __future__ import annotations

import math

from torch import Tensor

from ...common.errors import UserError
from ..objectives import LossTerm
from .base import Callback, TrainState

PREFIX = "loss/"


class LossMetrics(Callback):
    """Records ``loss/TERM`` and ``loss/TERM/SOURCE``, means over the targets of steps that were not skipped.

    Args:
        sources: names of the data sources, in the order of a batch's ``source_ids``.
    """

    def __init__(self, sources: list[str]) -> None:
        self.sources = sources
        self._totals: list[dict[str, Tensor]] = []
        self._by_source: list[dict[str, Tensor]] = []

    def after_forward(self, state: TrainState, number: int, terms: dict[str, LossTerm]) -> None:
        batch = state.micro_batches[number]
        self._totals.append({name: term.total.detach() for name, term in terms.items()})
        self._by_source.append(state.objective.source_sums(batch.inputs, batch.source_ids, len(self.sources)))

    def after_step(self, state: TrainState) -> None:
        for totals, counts in zip(self._totals, state.target_counts, strict=True):
            for name, total in totals.items():
                state.metrics.record(f"{PREFIX}{name}", total, counts[name])
        for by_source in self._by_source:
            for name, (sums, targets) in by_source.items():
                state.metrics.record([f"{PREFIX}{name}/{one}" for one in self.sources], sums, targets)
        self.on_skipped_step(state)

    def on_skipped_step(self, state: TrainState) -> None:
        self._totals, self._by_source = [], []

    def on_metrics(self, state: TrainState, metrics: dict[str, float]) -> None:
        require_finite_losses(metrics, state.step)


def require_finite_losses(metrics: dict[str, float], step: int) -> None:
    """Raise a UserError that names the non-finite losses: training never recovers from them."""
    wrong = [name for name, value in metrics.items() if name.startswith(PREFIX) and not math.isfinite(value)]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)} became infinite or not a number shortly before step {step}; the "
            "checkpoints are older: start again with a lower optimizer.lr or "
            "optimizer.gradient_clipping, or look for broken numbers in data.sources"
        )
