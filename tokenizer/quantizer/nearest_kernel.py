"""The nearest-code search as one Triton kernel: distances and running minimum in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_VECTORS = 64
BLOCK_CODES = 64
BLOCK_DIM = 32


@triton.jit
def nearest_kernel(  # type: ignore[no-untyped-def]  # Triton's own types are not Python's
    vectors,
    codebook,
    squares,
    codes,
    num_vectors,
    num_codes,
    dim,
    BLOCK_VECTORS: tl.constexpr,
    BLOCK_CODES: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """One program finds the codes of BLOCK_VECTORS vectors, with the distances in registers only."""
    rows = tl.program_id(0) * BLOCK_VECTORS + tl.arange(0, BLOCK_VECTORS)
    in_rows = rows < num_vectors
    best = tl.full([BLOCK_VECTORS], float("inf"), tl.float32)
    best_code = tl.zeros([BLOCK_VECTORS], tl.int32)
    for start in range(0, num_codes, BLOCK_CODES):
        candidates = start + tl.arange(0, BLOCK_CODES)
        in_book = candidates < num_codes
        product = tl.zeros([BLOCK_VECTORS, BLOCK_CODES], tl.float32)
        for first in range(0, dim, BLOCK_DIM):
            columns = first + tl.arange(0, BLOCK_DIM)
            in_dim = columns < dim
            x = tl.load(
                vectors + rows.to(tl.int64)[:, None] * dim + columns[None, :],
                mask=in_rows[:, None] & in_dim[None, :],
                other=0.0,
            )
            book = tl.load(
                codebook + candidates[None, :] * dim + columns[:, None],
                mask=in_book[None, :] & in_dim[:, None],
                other=0.0,
            )
            # "ieee": full fp32 products; TF32 would choose other codes.
            product = tl.dot(x, book, product, input_precision="ieee")
        square = tl.load(squares + candidates, mask=in_book, other=float("inf"))
        distance = square[None, :] - 2.0 * product
        least, index = tl.min(distance, axis=1, return_indices=True, return_indices_tie_break_left=True)
        # Strictly smaller: the lowest index wins a tie, as in the search in chunks.
        closer = least < best
        best = tl.where(closer, least, best)
        best_code = tl.where(closer, start + index, best_code)
    tl.store(codes + rows, best_code.to(tl.int64), mask=in_rows)


def nearest_codes_fused(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest code: vectors (M, C) and codebook (N, C) in fp32 -> (M,) int64."""
    count, dim = vectors.shape
    codes = torch.empty(count, dtype=torch.int64, device=vectors.device)
    if count:
        nearest_kernel[(triton.cdiv(count, BLOCK_VECTORS),)](
            vectors.contiguous(),
            codebook.contiguous(),
            codebook.square().sum(dim=1),
            codes,
            num_vectors=count,
            num_codes=codebook.shape[0],
            dim=dim,
            BLOCK_VECTORS=BLOCK_VECTORS,
            BLOCK_CODES=BLOCK_CODES,
            BLOCK_DIM=BLOCK_DIM,
        )
    return codes
