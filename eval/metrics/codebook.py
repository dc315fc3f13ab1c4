"""How much of its codebook a tokenizer uses on a set of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Metric


class CodebookUsage(Metric):
    """Counts of every code at every depth of one branch.

    Usage is the share of codes met at least once; perplexity is exp(entropy) of their frequencies, the number
    of evenly used codes that would carry as much. Both depend on the number of positions looked at: a set
    with fewer positions than codes cannot use them all.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_codes: int, depth: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(depth, num_codes, dtype=torch.int64), "sum")

    def update(self, codes: Tensor) -> None:
        """Add codes (..., D)."""
        depth, num_codes = self.counts.shape
        columns = codes.reshape(-1, depth).to(self.device).unbind(dim=1)
        self.counts += torch.stack([torch.bincount(column, minlength=num_codes) for column in columns])

    def compute(self) -> dict[str, Any]:
        """ "usage" and "perplexity", a number for each depth, and "usage_all_depths", the share of codes used
        at any depth, which means something where the depths share one codebook.
        """
        shares = self.counts.double() / self.counts.sum(dim=1, keepdim=True).clamp_min(1)
        return {
            "usage": (self.counts > 0).double().mean(dim=1).tolist(),
            "perplexity": torch.special.entr(shares).sum(dim=1).exp().tolist(),
            "usage_all_depths": float((self.counts.sum(dim=0) > 0).double().mean()),
        }
