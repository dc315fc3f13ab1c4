"""Statistics of training passes, kept apart from the codebooks until their optimizer step is accepted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..settings import QuantizerConfig
from .codebook import count_and_sum, draw_by_error, is_distributed


class StagedStatistics:
    """Sums over the training passes since the last update of the codebooks, on this process.

    counts (D, N): uses of every code. sums (K, N, C): sum of the inputs of every code; K is 1 for a shared
    codebook, else D. squares (D + 1,): sums of the squared inputs and of the squared residuals after every
    depth. input_sum (C,); num_vectors: number of inputs. candidates (K, N, C): inputs that may replace unused
    codes, or None.
    """

    def __init__(self, config: QuantizerConfig, device: torch.device) -> None:
        size, dim, depth = config.num_codes, config.code_dim, config.depth
        self._shared = config.shared_codebook
        self.counts = torch.zeros(depth, size, dtype=torch.float32, device=device)
        books = 1 if self._shared else depth
        self.sums = torch.zeros(books, size, dim, dtype=torch.float32, device=device)
        self.squares = torch.zeros(depth + 1, dtype=torch.float32, device=device)
        self.input_sum = torch.zeros(dim, dtype=torch.float32, device=device)
        self.num_vectors = 0
        self.candidates: Tensor | None = None
        self._candidate_error = torch.zeros(len(self.sums), device=device)

    def add(self, inputs: Sequence[Tensor], chosen: Sequence[Tensor], left_over: Tensor) -> None:
        """Add a pass: the inputs (M, C) and codes (M,) of every depth, and the last residual (M, C)."""
        counts, sums = depth_statistics(inputs, chosen, self.counts.shape[1])
        self.counts += counts
        self.sums += sums.sum(dim=0, keepdim=True) if self._shared else sums
        self.num_vectors += len(inputs[0])
        self.input_sum += inputs[0].sum(dim=0)
        self.squares += torch.stack([residual.square().sum() for residual in (*inputs, left_over)])

    def add_candidates(self, inputs: Sequence[Tensor], left_over: Tensor) -> None:
        """Sample candidates from a pass, in proportion to the squared residual after their depth.

        Over several passes they are a sample of all of them: a new one replaces an old one with the
        probability of its pass's share in the error.
        """
        errors = [rest.square().sum(dim=1).nan_to_num(0.0, 0.0, 0.0) for rest in (*inputs[1:], left_over)]
        if self._shared:
            inputs, errors = [torch.cat(list(inputs))], [torch.cat(errors)]
        size = self.counts.shape[1]
        drawn = torch.stack([draw_by_error(x, error, size) for x, error in zip(inputs, errors, strict=True)])
        error = torch.stack([one.sum() for one in errors])
        self._candidate_error += error
        if self.candidates is None:
            self.candidates = drawn
            return
        share = error / self._candidate_error.clamp(min=1e-12)
        taken = torch.rand(drawn.shape[:2], device=drawn.device) < share.unsqueeze(1)
        self.candidates = torch.where(taken.unsqueeze(-1), drawn, self.candidates)

    def reduce(self) -> None:
        """Sum counts and sums over all processes, and take the candidates of the first one."""
        if not is_distributed():
            return
        flat = torch.cat((self.counts.flatten(), self.sums.flatten()))
        dist.all_reduce(flat)
        self.counts = flat[: self.counts.numel()].view_as(self.counts)
        self.sums = flat[self.counts.numel() :].view_as(self.sums)
        if self.candidates is not None:
            dist.broadcast(self.candidates, src=0)


def depth_statistics(
    inputs: Sequence[Tensor], chosen: Sequence[Tensor], num_codes: int
) -> tuple[Tensor, Tensor]:
    """Counts (D, N) and sums (D, N, C) of the inputs (M, C) and codes (M,) of D depths."""
    found = [count_and_sum(x, codes, num_codes) for x, codes in zip(inputs, chosen, strict=True)]
    counts, sums = zip(*found, strict=True)
    return torch.stack(counts), torch.stack(sums)
