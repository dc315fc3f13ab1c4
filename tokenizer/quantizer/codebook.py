"""Codebooks trained by exponential moving averages: search, statistics, update, restart, k-means."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...common.errors import first_line
from ...common.kept_dtype import KeepsDtype
from ...common.precision import fp32_products

# Size of the distances of a chunk of vectors to all codes: 4 MB in fp32, which fits a CPU's cache. GPUs need
# larger products and get 16 times as much.
MAX_DISTANCES = 2**20
SMOOTHING = 1e-5
_SEEDING_ROUNDS = 16
_MAX_CATEGORIES = 2**24  # of torch.multinomial


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def code_vectors(tables: Tensor, codes: Tensor) -> Tensor:
    """The vector of every code: codes (..., D) of tables (K, N, C) -> (..., D, C).

    K is 1 if all depths share a table; fewer depths are the first ones.
    """
    if len(tables) > 1:
        codes = codes + torch.arange(codes.shape[-1], device=codes.device) * tables.shape[1]
    return nn.functional.embedding(codes, tables.flatten(0, 1))


def usage_and_perplexity(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Counts of codes (D, N) -> the share used at each depth, exp(entropy) of their frequencies, fp64."""
    counts = counts.cpu()  # Apple's GPUs have no fp64
    frequencies = counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    return (counts > 0).double().mean(dim=1), torch.special.entr(frequencies).sum(dim=1).exp()


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code of each vector; the lowest index wins a tie.

    vectors (M, C) and codebook (N, C) in fp32 -> (M,) int64. Uses the Triton kernel on NVIDIA GPUs, otherwise
    `nearest_codes_in_chunks`.
    """
    fused = _fused_search(vectors.device) if vectors.device.type == "cuda" else None
    return (fused or nearest_codes_in_chunks)(vectors, codebook)


@torch.no_grad()
def nearest_codes_in_chunks(vectors: Tensor, codebook: Tensor) -> Tensor:
    """`nearest_codes` by plain products on any device; memory is bounded by MAX_DISTANCES."""
    squares = codebook.square().sum(dim=1)
    limit = MAX_DISTANCES if vectors.device.type == "cpu" else 16 * MAX_DISTANCES
    rows = max(1, limit // codebook.shape[0])
    # Products with a contiguous matrix into the same memory are a third faster on a CPU, with the same bits.
    columns, memory = codebook.t().contiguous(), vectors.new_empty(min(rows, len(vectors)), len(codebook))
    with fp32_products(device=vectors.device):
        found = [
            _argmin(torch.addmm(squares, chunk, columns, alpha=-2.0, out=memory[: len(chunk)]))
            for chunk in vectors.split(rows)
        ]
    return found[0] if len(found) == 1 else torch.cat(found)


def _argmin(distances: Tensor) -> Tensor:
    """The index of the least distance in every row (M, N) -> (M,) int64; the first of equal ones."""
    if distances.device.type != "cpu":
        return distances.argmin(dim=1)
    # The same, and ten times as fast as torch's on a CPU, where it took two thirds of the search.
    return torch.from_numpy(distances.detach().numpy().argmin(axis=1))


@cache
def _fused_search(device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The Triton kernel, if it works on this device and agrees with the search in chunks."""
    try:
        from .nearest_kernel import nearest_codes_fused
    except ImportError:
        return None
    generator = torch.Generator().manual_seed(0)
    vectors, codebook = (torch.randn(n, 24, generator=generator).to(device) for n in (100, 300))
    try:
        codes = nearest_codes_fused(vectors, codebook)
        agrees = bool(codes.eq(nearest_codes_in_chunks(vectors, codebook)).all())
        reason = "it disagrees with the search in chunks"
    except Exception as error:  # compilers raise many types
        agrees, reason = False, first_line(error)
    if not agrees:
        warnings.warn(f"the fused code search is not used on {device}: {reason}", stacklevel=2)
    return nearest_codes_fused if agrees else None


def k_means(vectors: Tensor, num_codes: int, generator: torch.Generator, iterations: int = 20) -> Tensor:
    """Lloyd's k-means: (M, C) fp32 -> centres (num_codes, C).

    Starts from vectors sampled in rounds, in proportion to their squared distance to the centres so far
    (k-means||, arXiv 1203.6402); an empty centre is sampled again in the same way. The result depends on the
    generator only. Fewer vectors than codes are repeated with a little noise.
    """
    vectors = _at_least(vectors, num_codes, generator)
    centres = vectors.mean(dim=0, keepdim=True)
    for share in torch.arange(num_codes).tensor_split(min(_SEEDING_ROUNDS, num_codes)):
        distances = (vectors - centres[nearest_codes(vectors, centres)]).square().sum(dim=1)
        sampled = draw_by_error(vectors, distances, len(share), generator)
        centres = sampled if share[0] == 0 else torch.cat((centres, sampled))
    for _ in range(iterations):
        centres = lloyd_step(vectors, centres, generator)
    return centres


def lloyd_step(vectors: Tensor, centres: Tensor, generator: torch.Generator) -> Tensor:
    """One assignment and averaging; empty centres are resampled where the error is large."""
    codes = nearest_codes(vectors, centres)
    counts, sums = count_and_sum(vectors, codes, len(centres))
    error = (vectors - centres[codes]).square().sum(dim=1)
    means = sums / counts.clamp(min=1).unsqueeze(1)
    sampled = draw_by_error(vectors, error, len(centres), generator)
    return torch.where((counts > 0).unsqueeze(1), means, sampled)


def draw_by_error(
    vectors: Tensor, error: Tensor, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """Sample `count` of the vectors (M, C), with replacement, in proportion to their error (M,).

    Uniform sampling would give most codes to the most frequent vectors, in images those of the background,
    for which one code is enough.
    """
    error = error.clamp(min=1e-12)[:_MAX_CATEGORIES]  # if all errors are zero, any vector will do
    if generator is not None:
        error = error.to(generator.device)
    return vectors[torch.multinomial(error, count, True, generator=generator).to(vectors.device)]


def count_and_sum(vectors: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """The number (num_codes,) and sum (num_codes, C) of the vectors (M, C) of each code (M,), in fp32."""
    # Not bincount, for which a GPU has to wait.
    counts = vectors.new_zeros(num_codes).index_add_(0, codes, torch.ones_like(codes, dtype=vectors.dtype))
    sums = vectors.new_zeros(num_codes, vectors.shape[1]).index_add_(0, codes, vectors)
    return counts, sums


def _at_least(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Repeat vectors, with noise of 1 % of their standard deviation, up to at least `count`."""
    if len(vectors) >= count:
        return vectors
    repeats = -(-count // len(vectors))
    tiled = vectors.repeat(repeats, 1)
    noise = torch.randn(tiled.shape, generator=generator, device=generator.device).to(tiled.device)
    noise[: len(vectors)] = 0.0
    return tiled + 0.01 * vectors.std(unbiased=False).clamp(min=1e-3) * noise


class EmaCodebooks(KeepsDtype):
    """K codebooks of N vectors with the moving averages that train them.

    Buffers: vectors (K, N, C), counts (K, N), sums (K, N, C), always fp32, also after `.to(bfloat16)`, as
    codes chosen in lower precision differ. num_updates () int64: calls of `count_update`.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    num_updates: Tensor

    def __init__(self, num_books: int, num_codes: int, code_dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        shape = (num_books, num_codes, code_dim)
        self.register_buffer("vectors", torch.empty(shape, dtype=torch.float32))
        self.register_buffer("counts", torch.empty(shape[:2], dtype=torch.float32))
        self.register_buffer("sums", torch.empty(shape, dtype=torch.float32))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        # A copy of num_updates on the host, which saves a synchronisation per step; None: read the buffer.
        self._host_updates: int | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random vectors, each with a moving count of one."""
        torch.nn.init.uniform_(self.vectors, -1.0, 1.0)
        self.vectors.div_(self.vectors.shape[-1] ** 0.5)
        self.assign(self.vectors)
        torch.nn.init.zeros_(self.num_updates)
        self._host_updates = None

    @torch.no_grad()
    def assign(self, vectors: Tensor) -> None:
        """Set the vectors (K, N, C) and matching statistics: counts 1, sums = vectors."""
        self.vectors.copy_(vectors)
        self.sums.copy_(vectors)
        torch.nn.init.ones_(self.counts)

    @torch.no_grad()
    def update(self, counts: Tensor, sums: Tensor, books: slice = slice(None)) -> None:
        """Update the chosen books by this step's counts (K, N) and sums (K, N, C), summed over processes.

        As in VQ-VAE: n = sum of counts; vector = sums / (n (count + eps) / (n + num_codes eps)). Non-finite
        sums change nothing.
        """
        finite = sums.isfinite().all()  # stays on the device, so that nothing waits for it
        ema_counts = self.counts[books].mul(self.decay).add_(counts, alpha=1.0 - self.decay)
        ema_sums = self.sums[books].mul(self.decay).add_(sums, alpha=1.0 - self.decay)
        total = ema_counts.sum(dim=1, keepdim=True)
        smoothed = total * (ema_counts + SMOOTHING) / (total + ema_counts.shape[1] * SMOOTHING)
        updated = {"counts": ema_counts, "sums": ema_sums, "vectors": ema_sums / smoothed.unsqueeze(-1)}
        for name, value in updated.items():
            buffer = getattr(self, name)
            buffer[books] = torch.where(finite, value, buffer[books])

    @torch.no_grad()
    def restart(self, candidates: Tensor, threshold: float) -> Tensor:
        """Replace codes whose moving count is below threshold x mean by candidates (K, N, C).

        The candidates must be equal on all processes. A replaced code gets a count of twice the threshold, so
        that it can be replaced again after ln 2 / (1 - decay) unused updates. Returns the number of replaced
        codes per book, (K,) int64.
        """
        limit = threshold * self.counts.mean(dim=1, keepdim=True)
        unused = (self.counts < limit) & candidates.isfinite().all(dim=-1)
        self.counts.copy_(torch.where(unused, 2.0 * limit, self.counts))
        chosen = unused.unsqueeze(-1)
        self.vectors.copy_(torch.where(chosen, candidates, self.vectors))
        self.sums.copy_(torch.where(chosen, candidates * self.counts.unsqueeze(-1), self.sums))
        return unused.sum(dim=1)

    def updates_so_far(self) -> int:
        """The number of updates, from the host."""
        if self._host_updates is None:
            self._host_updates = int(self.num_updates)
        return self._host_updates

    def count_update(self) -> None:
        """Add one to the number of updates."""
        self._host_updates = self.updates_so_far() + 1
        self.num_updates.add_(1)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._host_updates = None
