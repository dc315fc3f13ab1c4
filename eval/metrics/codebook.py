"""Codebook usage of a tokenizer on a set of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...tokenizer.quantizer.codebook import usage_and_perplexity
from .base import Metric


class CodebookUsage(Metric):
    """Counts of every code at every depth of one branch.

    Usage is the share of codes that occur; perplexity is exp(entropy) of their frequencies. Both depend on
    the number of positions: a set with fewer positions than codes cannot use them all.
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
        at any depth, for depths that share one codebook.
        """
        usage, perplexity = usage_and_perplexity(self.counts)
        return {
            "usage": usage.tolist(),
            "perplexity": perplexity.tolist(),
            "usage_all_depths": float((self.counts.sum(dim=0) > 0).cpu().double().mean()),
        }
