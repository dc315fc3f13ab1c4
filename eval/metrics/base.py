"""torchmetrics' `Metric`, and the mean over pairs of images that several metrics are."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UserError
from ...common.packages import missing_package

try:
    from torchmetrics import Metric
except ModuleNotFoundError as error:
    raise UserError(missing_package("torchmetrics")) from error


class PairMean(Metric):
    """Mean over pairs of images of one number per pair; non-finite numbers are counted, not averaged."""

    full_state_update = False
    total: Tensor
    count: Tensor
    not_finite: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), "sum")
        for name in ("count", "not_finite"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), "sum")

    @abstractmethod
    def values(self, originals: Tensor, reconstructions: Tensor) -> Tensor:
        """One number for each pair: two batches (B, 3, H, W) uint8 -> (B,)."""

    def update(self, originals: Tensor, reconstructions: Tensor) -> None:
        """Add two batches of uint8 images (B, 3, H, W)."""
        values = self.values(originals, reconstructions).to(self.device).double()
        finite = values[values.isfinite()]
        self.total += finite.sum()
        self.count += len(finite)
        self.not_finite += len(values) - len(finite)

    def compute(self) -> dict[str, Any]:
        """ "mean" (None where no number was finite), "count" and "not_finite"."""
        count = int(self.count)
        mean = float(self.total) / count if count else None
        return {"mean": mean, "count": count, "not_finite": int(self.not_finite)}
