"""Pixel and feature losses of the tokenizer, each a mean over the batch it is given."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def distillation_loss(features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L_sem = ‖F − F0‖² − cos(F, F0) per image, shape (B,), shifted by 1 so that a perfect copy gives 0.

    Args:
        features, target: (B, N, C) or (B, C). The squared distance is a mean over all elements, the cosine
            is over C and averaged over N, as in the released code.

    Source: arXiv 2503.14324, the semantic loss.
    """
    squared = (features - target).pow(2).flatten(1).mean(1)
    cosine = F.cosine_similarity(features, target, dim=-1)
    return squared + 1 - (cosine if cosine.ndim == 1 else cosine.mean(1))


def gradient_loss(reconstruction: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring-pixel differences, shape (B,); it keeps edges sharp."""
    error = reconstruction - image
    horizontal = (error[..., :, 1:] - error[..., :, :-1]).abs().flatten(1).mean(1)
    vertical = (error[..., 1:, :] - error[..., :-1, :]).abs().flatten(1).mean(1)
    return horizontal + vertical
