"""From codes to LLM inputs: frozen codebooks, projectors, and embeddings of positions.

Source: DualToken, arXiv 2503.14324, section 3.3. Shapes: D depths, N codes, C code dimension, H hidden size
of the LLM.
"""

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ..common.kept_dtype import KeepsDtype
from ..tokenizer.quantizer.codebook import code_vectors
from .configuration import DualTokenConfig
from .settings import CodebookConfig


class FrozenCodebook(KeepsDtype):
    """The code vectors of one residual quantizer, always in fp32.

    `vectors` is (K, N, C) with K = 1 when all depths share one table, else K = D. They are buffers: never
    trained, saved with the model, and bitwise equal to the visual tokenizer's. `scale` (one over their root
    mean square) normalises the features before a learned layer.
    """

    vectors: Tensor
    scale: Tensor

    def __init__(self, sizes: CodebookConfig) -> None:
        super().__init__()
        self.depth = sizes.depth
        tables = 1 if sizes.shared_codebook else sizes.depth
        self.register_buffer("vectors", torch.zeros(tables, sizes.num_codes, sizes.code_dim))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def assign(self, vectors: Tensor) -> None:
        """Copy the quantizer's `codebook_tensor()`; raises ValueError for another shape."""
        if vectors.shape != self.vectors.shape:
            raise ValueError(
                f"the codebook is {tuple(vectors.shape)}, in the configuration {tuple(self.vectors.shape)}"
            )
        self.vectors.copy_(vectors)
        rms = self.vectors.square().mean().sqrt()
        self.scale.copy_(torch.where(rms > 0, 1.0 / rms, torch.ones_like(rms)))

    def embed_per_depth(self, codes: Tensor) -> Tensor:
        """Scaled code vectors: (..., D) -> (..., D, C); fewer than D codes belong to the first depths."""
        return code_vectors(self.vectors, codes) * self.scale

    def embed_depth(self, codes: Tensor, depth: int) -> Tensor:
        """Scaled vectors of one depth's codes: (...) -> (..., C)."""
        table = self.vectors[depth if self.vectors.shape[0] > 1 else 0]
        return nn.functional.embedding(codes, table) * self.scale

    def embed(self, codes: Tensor) -> Tensor:
        """Sum of the code vectors over depth, the quantized feature (scaled): (..., D) -> (..., C)."""
        return self.embed_per_depth(codes).sum(dim=-2)

    def extra_repr(self) -> str:
        _, num_codes, code_dim = self.vectors.shape
        return f"{self.depth} depths, {num_codes} codes of {code_dim} numbers"


class CodeProjector(nn.Module):
    """Two-layer MLP from a quantized feature to part of an LLM embedding: (..., C) -> (..., width)."""

    def __init__(self, code_dim: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(code_dim, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(features.to(self.fc1.weight.dtype))))

    def reset(self, std: float) -> None:
        """Initialise to outputs of about `std`, the size of the LLM's embeddings, for unit inputs."""
        init.normal_(self.fc1.weight, std=self.fc1.in_features**-0.5)
        # 0.65 is about the root mean square of GELU of a unit normal.
        init.normal_(self.fc2.weight, std=std / (0.65 * self.fc2.in_features**0.5))
        init.zeros_(self.fc1.bias)
        init.zeros_(self.fc2.bias)


class GridPosition(nn.Module):
    """Learned row plus column embedding of a visual position, zero-initialised."""

    def __init__(self, config: DualTokenConfig) -> None:
        super().__init__()
        (rows, self.columns), hidden_size = config.grid_size, config.text_config.hidden_size
        self.row = nn.Embedding(rows, hidden_size)
        self.column = nn.Embedding(self.columns, hidden_size)

    def forward(self, positions: Tensor) -> Tensor:
        """Position index within its image in raster order: (...) -> (..., H)."""
        return self.row(positions // self.columns) + self.column(positions % self.columns)

    def reset(self) -> None:
        init.zeros_(self.row.weight)
        init.zeros_(self.column.weight)
