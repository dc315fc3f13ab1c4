"""Residual quantization with a large shared codebook: our search against a dense one and a library's.

Case: N vectors, 16,384 codes of dimension 32, depth 8, one shared codebook. `dense` is the textbook way,
written here: all distances and one-hot assignments of a depth at once. `vector-quantize-pytorch` is
ResidualVQ with the same settings (pip install vector-quantize-pytorch).

Examples:
  python benchmarks/quantizer.py
  python benchmarks/quantizer.py --size full    # 32 images of 27 x 27 positions, for a GPU
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from measure import argument_parser, compare, costs, default_device, report
from torch import Tensor, nn

from dualtoken.tokenizer import QuantizerConfig, ResidualQuantizer

NUM_CODES, CODE_DIM, DEPTH, DECAY = 16384, 32, 8, 0.99
IMAGES = {"small": 2, "full": 32}
POSITIONS = 27 * 27


class DenseResidualQuantizer(nn.Module):
    """The same arithmetic with every distance and every assignment held as one N x K matrix."""

    book: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        book = torch.randn(NUM_CODES, CODE_DIM) / CODE_DIM**0.5
        self.register_buffer("book", book)
        self.register_buffer("counts", torch.ones(NUM_CODES))
        self.register_buffer("sums", book.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual, total = z.detach(), torch.zeros_like(z)
        counts, sums = torch.zeros_like(self.counts), torch.zeros_like(self.sums)
        codes, loss = [], z.new_zeros(())
        for _ in range(DEPTH):
            distances = (
                residual.square().sum(1, keepdim=True)
                - 2 * residual @ self.book.t()
                + self.book.square().sum(1)
            )
            codes.append(distances.argmin(dim=1))
            assigned = nn.functional.one_hot(codes[-1], NUM_CODES).to(z.dtype)
            step = assigned @ self.book
            counts += assigned.sum(dim=0)
            sums += assigned.t() @ residual
            residual, total = residual - step, total + step
            loss = loss + (z - total).square().mean() / DEPTH
        if self.training:
            self._move(counts, sums)
        return z + (total - z).detach(), torch.stack(codes, dim=1), loss

    @torch.no_grad()
    def _move(self, counts: Tensor, sums: Tensor) -> None:
        self.counts.lerp_(counts, 1 - DECAY)
        self.sums.lerp_(sums, 1 - DECAY)
        total = self.counts.sum()
        smoothed = total * (self.counts + 1e-5) / (total + NUM_CODES * 1e-5)
        self.book.copy_(self.sums / smoothed.unsqueeze(1))


def build(kind: str, images: int, training: bool) -> Callable[[], Tensor]:
    """A step of one kind on the same vectors: forward, and backward with an update in training."""
    device = default_device()
    torch.manual_seed(0)
    z = torch.randn(images * POSITIONS, CODE_DIM, device=device).div_(CODE_DIM**0.5).requires_grad_(training)
    quantize = _quantizer(kind, device, training)

    def step() -> Tensor:
        with torch.set_grad_enabled(training):
            quantized, codes, loss = quantize(z)
            if training:
                (quantized.square().mean() + loss).backward()
        return codes

    return step


def _quantizer(kind: str, device: str, training: bool) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    if kind == "dense":
        return DenseResidualQuantizer().to(device).train(training)
    if kind == "vector-quantize-pytorch":
        from vector_quantize_pytorch import ResidualVQ

        library = ResidualVQ(
            dim=CODE_DIM,
            codebook_size=NUM_CODES,
            num_quantizers=DEPTH,
            shared_codebook=True,
            decay=DECAY,
            threshold_ema_dead_code=0,
            rotation_trick=False,
        )
        library.to(device).train(training)

        def run(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            quantized, codes, losses = library(z.unsqueeze(0))
            return quantized, codes, losses.sum()

        return run
    config = QuantizerConfig(
        num_codes=NUM_CODES,
        code_dim=CODE_DIM,
        depth=DEPTH,
        shared_codebook=True,
        decay=DECAY,
        restart_unused_codes=False,
    )
    own = ResidualQuantizer(config).to(device).train(training)

    def quantize(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = own(z.view(1, 1, *z.shape))
        return output.quantized, output.codes, output.commitment_loss

    return quantize


def main() -> None:
    args = argument_parser(__doc__, IMAGES, "steps", repeats=5).parse_args()
    cases = []
    for name, training in (("train step", True), ("encode", False)):
        candidates = {
            kind: partial(build, kind, IMAGES[args.size], training)
            for kind in ("dualtoken", "dense", "vector-quantize-pytorch")
        }
        measured = costs(candidates, args.repeats)
        cases += compare(f"{name}, {IMAGES[args.size] * POSITIONS} vectors", "dualtoken", measured)
    report("quantizer", cases)


if __name__ == "__main__":
    main()
