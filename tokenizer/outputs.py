"""Outputs of the tokenizer: codes, and the output of a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class VisualCodes:
    """The codes of a batch of images: pixel and semantic, each (B, H, W, D) int64."""

    pixel: Tensor
    semantic: Tensor

    def to(self, device: torch.device | str) -> VisualCodes:
        """The same codes on another device."""
        return VisualCodes(self.pixel.to(device), self.semantic.to(device))


@dataclass
class DualTokenizerOutput(ModelOutput):
    """The output of a forward pass over images.

    reconstruction: (B, 3, S, S) in the processor's range, if requested.
    pixel_commitment_loss, semantic_commitment_loss: fp32 scalars; if shared, semantic is zero.
    semantic_features: (B, N, hidden), the projected semantic codes that replace the hidden states.
    pooled: (B, hidden), the image embedding computed from them, not normalised.
    pixel_latents, semantic_latents: (B, H, W, C), the inputs of the quantizers.
    hidden_states: if requested, patch embeddings, then the output of every layer (at the semantic layer:
    before quantization).
    """

    codes: VisualCodes | None = None
    reconstruction: Tensor | None = None
    pixel_commitment_loss: Tensor | None = None
    semantic_commitment_loss: Tensor | None = None
    semantic_features: Tensor | None = None
    pooled: Tensor | None = None
    pixel_latents: Tensor | None = None
    semantic_latents: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
