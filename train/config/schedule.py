"""Section `schedule`: the learning rate over the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...common.limits import limited


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run: linear warm-up, then ``kind`` down to ``final_ratio`` of the peak.

    Args:
        kind: "wsd" (warm up, stay, decay) keeps the peak and falls linearly over the last steps only, so that
            a run can be made longer from any checkpoint before its decay.
        decay_share: share of the run's steps in that decay.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: int = limited(100, least=0, most=10**9)
    final_ratio: float = limited(0.05, least=0.0, most=1.0)
    decay_share: float = limited(0.1, least=0.0, most=1.0)
