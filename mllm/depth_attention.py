"""Attention over the depths of visual positions: tens of thousands of sequences of a few depths.

It is the explicit product on every device. Fused kernels are made for few long sequences: on GPUs they put
the batch into a launch dimension of at most 65,535, and the backward pass of flash attention pads each
sequence to 128 and then exceeds 32-bit indices. The scores, D x D of a head, are few next to the queries.

Shapes: T positions, D depths, E width of a head.
"""

import torch
from torch import Tensor

#: Most (position, head) pairs of one batched product, the number that torch itself uses where cuBLAS fails
#: on larger batches.
MOST_PRODUCTS = 63 * 1024


def attend_over_depths(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, softmax(q kᵀ / √E) v: (T, heads, D, E) -> (T, heads, D, E).

    Products have the dtype of `v`; the softmax is computed in fp32 (fp64 for fp64).
    """
    together = max(1, MOST_PRODUCTS // q.shape[1])
    if len(q) <= together:
        return _attend(q, k, v)
    parts = zip(*(one.split(together) for one in (q, k, v)), strict=True)
    return torch.cat([_attend(*part) for part in parts])


def attend_to_past(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of the newest depth: q (T, heads, E) to k and v (T, heads, depths, E) -> (T, heads, E)."""
    if k.shape[2] == 1:
        return v[:, :, 0]  # the only weight is 1
    scores = (k @ q.unsqueeze(-1)) * q.shape[-1] ** -0.5
    return (scores.softmax(dim=2).to(v.dtype).transpose(2, 3) @ v).squeeze(2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    # torch's softmax computes in fp32 also for bf16; autocast makes its result fp32.
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1).to(v.dtype) @ v
