"""Residual vector quantization: a vector as a sum of codes, each of the residual of the previous ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ...common.errors import UserError
from ...common.kept_dtype import KeepsDtype
from ..settings import QuantizerConfig
from .codebook import (
    EmaCodebooks,
    code_vectors,
    is_distributed,
    k_means,
    lloyd_step,
    nearest_codes,
    usage_and_perplexity,
)
from .staging import StagedStatistics, depth_statistics


@dataclass
class QuantizerOutput:
    """quantized (B, H, W, C), straight-through; codes (B, H, W, D) int64; commitment_loss scalar, fp32."""

    quantized: Tensor
    codes: Tensor
    commitment_loss: Tensor


@dataclass
class CodebookHealth:
    """Statistics of the codes in training since the last reset.

    num_vectors: inputs counted, over all processes. usage: share of codes used at least once; perplexity:
    exp(entropy) of the codes; error: squared residual after this depth over the inputs' variance (of this
    process); all (D,). restarts: codes replaced, per codebook (one if shared). rank_difference: the largest
    difference between the codebooks of two processes (should be 0), None for a single process.
    """

    num_vectors: int
    usage: Tensor
    perplexity: Tensor
    error: Tensor
    restarts: Tensor
    rank_difference: float | None


HEALTH_BUFFERS = ("usage_counts", "restart_counts", "squares", "input_sum", "num_local_vectors")


class ResidualQuantizer(KeepsDtype):
    """Quantize vectors by D codes from codebooks of N vectors (arXiv 2503.14324; RQ-VAE, 2203.01941).

    All arithmetic is fp32 without autocast. Codebooks get no gradients: in training mode every forward pass
    collects statistics of each depth's input, which update them by exponential moving averages, summed over
    all processes. A pass during a backward pass (recomputation of a checkpointed segment) is not counted.

    enabled: False passes features through unchanged with zero loss and zero codes.
    trainable: False keeps the codebook fixed in training mode too.
    staged: False updates the codebooks at the end of every forward pass. True leaves that to `apply_updates`,
        once for all passes of an optimizer step, or drops them by `discard_updates` if the step is rejected.
    """

    usage_counts: Tensor
    restart_counts: Tensor
    squares: Tensor
    input_sum: Tensor
    num_local_vectors: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.enabled = True
        self.trainable = True
        self.staged = False
        self._statistics: StagedStatistics | None = None
        self._before: dict[str, Tensor] = {}  # the codebooks before the first of the staged passes
        books = 1 if config.shared_codebook else config.depth
        self.codebooks = EmaCodebooks(books, config.num_codes, config.code_dim, config.decay)
        usage = torch.zeros(config.depth, config.num_codes, dtype=torch.int64)
        # Since the last reset, in training: uses of every code, restarts per codebook, sums of the squared
        # inputs and residuals after every depth, number and sum of the inputs.
        self.register_buffer("usage_counts", usage, persistent=False)
        self.register_buffer("restart_counts", torch.zeros(books, dtype=torch.int64), persistent=False)
        self.register_buffer("squares", torch.zeros(config.depth + 1, dtype=torch.float32), persistent=False)
        self.register_buffer("num_local_vectors", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("input_sum", torch.zeros(config.code_dim, dtype=torch.float32), persistent=False)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """(B, H, W, C) -> QuantizerOutput; commitment loss: mean over depths of |z - sg(sum so far)|²."""
        if not self.enabled:
            return QuantizerOutput(z, self._no_codes(z), z.new_zeros((), dtype=torch.float32))
        with torch.autocast(device_type=z.device.type, enabled=False):
            exact = z.float()
            # No update in a backward pass, which recomputes checkpointed segments.
            updating = self.training and self.trainable and torch._C._current_graph_task_id() == -1
            sums, codes = self._quantize(exact.detach().reshape(-1, z.shape[-1]), updating)
            sums = sums.view(self.config.depth, *z.shape)
            loss = (exact - sums).square().mean()
            quantized = exact + (sums[-1] - exact).detach() if torch.is_grad_enabled() else sums[-1]
        return QuantizerOutput(quantized.to(z.dtype), codes.view(*z.shape[:-1], -1), loss)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """(B, H, W, C) -> codes (B, H, W, D) int64; never updates the codebooks, also in training mode."""
        if not self.enabled:
            return self._no_codes(z)
        with torch.autocast(device_type=z.device.type, enabled=False):
            _, codes = self._quantize(z.float().reshape(-1, z.shape[-1]), updating=False)
        return codes.view(*z.shape[:-1], -1)

    def _no_codes(self, z: Tensor) -> Tensor:
        return torch.zeros(*z.shape[:-1], self.config.depth, dtype=torch.int64, device=z.device)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> the vectors (..., C) they stand for, in fp32: the sum over depths."""
        return self.embed_per_depth(codes).sum(dim=-2)

    def embed_per_depth(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> the code of each depth (..., D, C), in fp32."""
        return code_vectors(self.codebooks.vectors, codes)

    def codebook_tensor(self) -> Tensor:
        """A copy of the codebooks: (1, N, C) if all depths share one, else (D, N, C)."""
        return self.codebooks.vectors.detach().clone()

    @torch.no_grad()
    def read_health(self, reset: bool = True) -> CodebookHealth:
        """The statistics since the last reset; every process has to call this."""
        usage, perplexity = usage_and_perplexity(self.usage_counts)
        seen = self.num_local_vectors.clamp(min=1)
        variance = self.squares[0] / seen - (self.input_sum / seen).square().sum()
        health = CodebookHealth(
            num_vectors=int(self.usage_counts[0].sum()),
            usage=usage.float(),
            perplexity=perplexity.float(),
            error=(self.squares[1:] / seen / variance.clamp(min=1e-12)).float(),
            restarts=self.restart_counts.clone(),
            rank_difference=self._rank_difference() if is_distributed() else None,
        )
        if reset:
            self.reset_health()
        return health

    def reset_health(self) -> None:
        """Reset the statistics of `read_health`."""
        for name in HEALTH_BUFFERS:
            getattr(self, name).zero_()

    @torch.no_grad()
    def initialise_from(self, vectors: Tensor, seed: int = 0, iterations: int = 20) -> None:
        """Set the codebooks by k-means of vectors (..., C), depth by depth on the residuals.

        Uses the vectors of the first process and broadcasts; every process has to call this. A shared
        codebook gives each depth an equal part of the codes, then all parts are refined together.
        """
        points = vectors.detach().float().reshape(-1, vectors.shape[-1])
        points = points[points.isfinite().all(dim=1)]  # a broken image leaves the codes of the others
        if not len(points):
            raise UserError(
                "no finite vectors given to initialise a codebook from; give the features of an image"
            )
        generator = torch.Generator().manual_seed(seed)
        if not is_distributed() or dist.get_rank() == 0:
            with torch.autocast(device_type=points.device.type, enabled=False):
                shared = self.config.shared_codebook
                start = self._k_means_shared if shared else self._k_means_separate
                self.codebooks.assign(start(points, generator, iterations))
        if is_distributed():
            dist.broadcast(self.codebooks.vectors, src=0)
            self.codebooks.assign(self.codebooks.vectors)

    def _quantize(self, vectors: Tensor, updating: bool) -> tuple[Tensor, Tensor]:
        """(M, C) -> partial sums (D, M, C) and codes (M, D); if `updating`, the codebooks are updated."""
        residual = vectors
        inputs, chosen, partial = [], [], []
        total = torch.zeros_like(vectors)
        for depth in range(self.config.depth):
            book = self.codebooks.vectors[0 if self.config.shared_codebook else depth]
            codes = nearest_codes(residual, book)
            step = book[codes]
            inputs.append(residual)
            chosen.append(codes)
            if updating and self.config.update_each_depth:
                self._update_at_once(residual, codes, depth)
            residual = residual - step
            total = total + step
            partial.append(total)
        if updating:
            self._collect(inputs, chosen, residual)
            if not self.staged:
                self.apply_updates()
        return torch.stack(partial), torch.stack(chosen, dim=-1)

    def _rank_difference(self) -> float:
        extremes = torch.stack((self.codebooks.vectors, -self.codebooks.vectors))
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        return float(extremes.sum(dim=0).max())

    @torch.no_grad()
    def _collect(self, inputs: list[Tensor], chosen: list[Tensor], left_over: Tensor) -> None:
        """Add a pass to the statistics, with candidates for unused codes if the next update replaces them."""
        if self._statistics is None:
            self._statistics = StagedStatistics(self.config, left_over.device)
        self._statistics.add(inputs, chosen, left_over)
        restarts = (self.codebooks.updates_so_far() + 1) % self.config.restart_every == 0
        if restarts and self.config.restart_unused_codes:
            self._statistics.add_candidates(inputs, left_over)

    @torch.no_grad()
    def apply_updates(self) -> None:
        """Update the codebooks by the statistics of the passes since the last call, of all processes.

        One step of the moving averages, however many the passes are. Every process has to call this; without
        a pass in training mode it does nothing.
        """
        statistics, self._statistics, self._before = self._statistics, None, {}
        if statistics is None:
            return
        statistics.reduce()
        self.usage_counts += statistics.counts.to(torch.int64)
        self.num_local_vectors += statistics.num_vectors
        self.input_sum += statistics.input_sum
        self.squares += statistics.squares
        if not self.config.update_each_depth:
            shared = self.config.shared_codebook
            counts = statistics.counts.sum(dim=0, keepdim=True) if shared else statistics.counts
            self.codebooks.update(counts, statistics.sums)
        self.codebooks.count_update()
        if statistics.candidates is not None:
            threshold = self.config.restart_threshold
            self.restart_counts += self.codebooks.restart(statistics.candidates, threshold)

    @torch.no_grad()
    def discard_updates(self) -> None:
        """Drop the statistics of the passes since the last update: their step was rejected."""
        for name, value in self._before.items():
            getattr(self.codebooks, name).copy_(value)
        self._statistics, self._before = None, {}

    @torch.no_grad()
    def _update_at_once(self, inputs: Tensor, codes: Tensor, depth: int) -> None:
        """Update the codebook by one depth of a pass, so that deeper ones see it (`update_each_depth`)."""
        if self.staged and not self._before:
            names = ("vectors", "counts", "sums")
            self._before = {name: getattr(self.codebooks, name).clone() for name in names}
        counts, sums = depth_statistics([inputs], [codes], self.config.num_codes)
        if is_distributed():
            flat = torch.cat((counts.flatten(), sums.flatten()))
            dist.all_reduce(flat)
            counts, sums = flat[: counts.numel()].view_as(counts), flat[counts.numel() :].view_as(sums)
        shared = self.config.shared_codebook
        self.codebooks.update(counts, sums, slice(None) if shared else slice(depth, depth + 1))

    def _k_means_separate(self, points: Tensor, generator: torch.Generator, iterations: int) -> Tensor:
        """(M, C) -> (D, N, C): each depth's codebook from the residuals of the previous depths."""
        books = []
        for _ in range(self.config.depth):
            books.append(k_means(points, self.config.num_codes, generator, iterations))
            points = points - books[-1][nearest_codes(points, books[-1])]
        return torch.stack(books)

    def _k_means_shared(self, points: Tensor, generator: torch.Generator, iterations: int) -> Tensor:
        """(M, C) -> (1, N, C): N / D codes from each depth's residuals, then joint refinement on all."""
        size, depth = self.config.num_codes, self.config.depth
        parts: list[Tensor] = []
        residual = points
        for index in range(min(depth, size)):
            share = size // depth + (index < size % depth)
            parts.append(k_means(residual, share, generator, iterations))
            residual = residual - parts[-1][nearest_codes(residual, parts[-1])]
        book = torch.cat(parts)
        for _ in range(iterations // 2):
            book = lloyd_step(self._all_residuals(points, book), book, generator)
        return book.unsqueeze(0)

    def _all_residuals(self, points: Tensor, book: Tensor) -> Tensor:
        """(M, C) -> (D * M, C): the inputs of every depth if all depths use `book`."""
        inputs = []
        for _ in range(self.config.depth):
            inputs.append(points)
            points = points - book[nearest_codes(points, book)]
        return torch.cat(inputs)
