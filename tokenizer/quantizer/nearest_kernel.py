"""The nearest-code search as one Triton kernel: distances and running minimum in one pass."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# The inner product is unrolled over a block, whatever the size of the codebook: with these blocks, divided
# among 8 warps, compiling takes seconds and nothing spills out of the registers.
BLOCKS = {"BLOCK_VECTORS": 64, "BLOCK_CODES": 64, "BLOCK_DIM": 32}
OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}
#: Compute capabilities that `compile_ahead` is tested for: A100, H100/H200 and B200.
CAPABILITIES = (80, 90, 100)


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
                codebook + candidates.to(tl.int64)[None, :] * dim + columns[:, None],
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
        arguments = vectors.contiguous(), codebook.contiguous(), codebook.square().sum(dim=1), codes
        sizes = {"num_vectors": count, "num_codes": codebook.shape[0], "dim": dim}
        grid = (triton.cdiv(count, BLOCKS["BLOCK_VECTORS"]),)
        # Triton launches on the current device, whatever the device of the arguments.
        with torch.cuda.device_of(vectors):
            nearest_kernel[grid](*arguments, **sizes, **BLOCKS, **OPTIONS)
    return codes


def compile_ahead(capability: int) -> Any:
    """Compile the kernel for a GPU of this compute capability (90: sm_90), which need not be there.

    Returns Triton's compiled kernel: `asm` holds its PTX and machine code, `metadata.shared` the bytes of
    shared memory. Needs Triton 3.3 or newer.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"vectors": "*fp32", "codebook": "*fp32", "squares": "*fp32", "codes": "*i64"}
    signature = {**pointers, **dict.fromkeys(("num_vectors", "num_codes", "dim"), "i32")}
    signature |= dict.fromkeys(BLOCKS, "constexpr")
    # As at a launch: torch's memory is aligned to 16 bytes, and codebooks have sizes that 16 divides.
    aligned = [*range(len(pointers)), len(pointers) + 1, len(pointers) + 2]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = ASTSource(nearest_kernel, signature, BLOCKS, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=OPTIONS)
