"""How much of its codebook a tokenizer uses on a set of images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class CodebookUsage:
    """Counts of every code at every depth.

    Usage is the share of codes met at least once; perplexity is exp(entropy) of their frequencies, the number
    of evenly used codes that would carry as much. Both depend on the number of positions looked at: a set
    with fewer positions than codes cannot use them all.
    """

    num_codes: int
    depth: int
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.counts = torch.zeros(self.depth, self.num_codes, dtype=torch.int64)

    def update(self, codes: Tensor) -> None:
        """Add the codes (..., D) of one branch."""
        for depth, column in enumerate(codes.reshape(-1, self.depth).cpu().unbind(dim=1)):
            self.counts[depth] += torch.bincount(column, minlength=self.num_codes)

    def merge(self, other: CodebookUsage) -> None:
        """Add what another process counted."""
        self.counts += other.counts

    def usage(self) -> list[float]:
        """Share of codes in use, for each depth."""
        return (self.counts > 0).double().mean(dim=1).tolist()

    def perplexity(self) -> list[float]:
        """exp(entropy) of the code frequencies, for each depth."""
        shares = self.counts.double() / self.counts.sum(dim=1, keepdim=True).clamp_min(1)
        return torch.special.entr(shares).sum(dim=1).exp().tolist()

    def usage_of_all_depths(self) -> float:
        """Share of codes used at any depth; meaningful where the depths share one codebook."""
        return float((self.counts.sum(dim=0) > 0).double().mean())
