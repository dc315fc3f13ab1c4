"""A mean that grows value by value and can be merged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class RunningMean:
    """Mean of finite values; infinite and undefined ones are counted apart and never enter it."""

    total: float = 0.0
    count: int = 0
    not_finite: int = 0

    def update(self, values: Iterable[float]) -> None:
        """Add values, one for each image."""
        for value in values:
            if math.isfinite(value):
                self.total += float(value)
                self.count += 1
            else:
                self.not_finite += 1

    def merge(self, other: RunningMean) -> None:
        """Add what another process gathered."""
        self.total += other.total
        self.count += other.count
        self.not_finite += other.not_finite

    @property
    def value(self) -> float | None:
        """The mean, or None when there was no finite value."""
        return self.total / self.count if self.count else None
