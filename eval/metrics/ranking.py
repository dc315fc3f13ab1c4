"""Ranks of correct candidates among scored ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ranks_of(scores: Tensor, correct: Sequence[int] | Tensor) -> Tensor:
    """Scores (B, N) and the correct column of every row -> its rank in that row, from 0: (B,).

    Equal scores rank before the correct one, so that constant scores are not correct by their order.
    """
    own = scores.gather(1, torch.as_tensor(correct, dtype=torch.int64).unsqueeze(1))
    return (scores >= own).sum(dim=1) - 1
