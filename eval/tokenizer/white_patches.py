"""How much codes vary where an image shows nothing: noise that a language model can only guess."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor
from ..metrics.codebook import CodebookUsage

BATCH = 64
_SAME = 1e-3  # of normalised values; a grey level is more


@torch.inference_mode()
def white_patch_entropy(
    tokenizer: DualTokenizer, processor: DualTokenizerImageProcessor, images: Sequence[Image.Image]
) -> dict[str, float]:
    """Entropy of the codes of wholly white patches by branch, in nats a position; NaN without such a patch.

    The sum of the levels' entropies, so at least that of the codes together. 0: all such patches have the
    same codes. What surrounds a patch may tell a part of it to a model that sees the codes around.
    """
    usages = {
        branch: CodebookUsage(quantizer.config.num_codes, quantizer.config.depth)
        for branch, quantizer in (
            ("pixel", tokenizer.pixel_quantizer),
            ("semantic", tokenizer.semantic_quantizer),
        )
    }
    for start in range(0, len(images), BATCH):
        pixels = processor(list(images[start : start + BATCH]))["pixel_values"]
        white = white_patches(pixels, processor, tokenizer.config.grid_size)
        codes = tokenizer.encode(pixels.to(tokenizer.device))
        for branch, usage in usages.items():
            usage.update(getattr(codes, branch).cpu()[white])
    return {branch: _entropy(usage) for branch, usage in usages.items()}


def white_patches(
    pixels: Tensor, processor: DualTokenizerImageProcessor, grid_size: tuple[int, int]
) -> Tensor:
    """Which patches of normalised images (B, 3, S, S) are white all over: bool (B, H, W)."""
    rows, columns = grid_size
    white = processor(Image.new("RGB", (8, 8), "white"))["pixel_values"][:, :, :1, :1]
    same = ((pixels - white).abs() < _SAME).all(dim=1)
    return same.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).all(dim=4).all(dim=2)


def _entropy(usage: CodebookUsage) -> float:
    if not usage.counts.any():
        return math.nan
    return sum(math.log(perplexity) for perplexity in usage.perplexity())
