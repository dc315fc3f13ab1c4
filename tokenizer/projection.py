"""The attention projections before and after a quantizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend


class PoolingAttention(nn.Module):
    """Self-attention from `in_dim` to `out_dim` channels.

    The wider of the two widths is split into wider / narrower heads. When narrowing, heads are averaged
    instead of concatenated (UniTok's attention projection, arXiv 2502.20321). There is no key bias: it cannot
    change the output.
    """

    def __init__(self, in_dim: int, out_dim: int, causal: bool) -> None:
        super().__init__()
        self.narrowing = in_dim > out_dim
        self.causal = causal
        width, narrow = max(in_dim, out_dim), min(in_dim, out_dim)
        if width % narrow:
            raise ValueError(f"widths {in_dim} and {out_dim}: one must divide the other")
        self.num_heads = width // narrow
        self.qkv = nn.Linear(in_dim, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, out_dim)."""
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        heads = attend(query, key, value, self.causal)
        mixed = heads.mean(dim=1) if self.narrowing else heads.transpose(1, 2).flatten(2)
        return self.proj(mixed)


class GatedMlp(nn.Module):
    """GeGLU after a norm: out(gelu(gate x) * value x)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)  # of the released models, which have 1e-5 in the other norms
        self.gate = nn.Linear(dim, hidden_dim)
        self.value = nn.Linear(dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        x = self.norm(x)
        return self.out(F.gelu(self.gate(x), approximate="tanh") * self.value(x))


class AttentionProjection(nn.Module):
    """Project a token sequence between the backbone's width and the code dimension.

    causal: position p sees positions <= p only, in raster order (the released models' post-quantizer
    projections).
    """

    def __init__(self, in_dim: int, out_dim: int, causal: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(in_dim)
        self.attention = PoolingAttention(in_dim, out_dim, causal)
        self.skip_norm = nn.LayerNorm(in_dim)
        self.skip = nn.Linear(in_dim, out_dim)
        self.mlp_norm = nn.LayerNorm(out_dim)
        self.mlp = GatedMlp(out_dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, out_dim)."""
        x = self.skip(self.skip_norm(x)) + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))
