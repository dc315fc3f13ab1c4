"""How much codes vary where an image shows nothing: noise that a language model can only guess."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor
from .batch import pixel_batches
from .code_usage import codebook_usages

_SAME = 1e-3  # of normalised values; a grey level is more


@torch.inference_mode()
def white_patch_entropy(
    tokenizer: DualTokenizer, processor: DualTokenizerImageProcessor, images: Sequence[Image.Image]
) -> dict[str, float]:
    """Entropy of the codes of all-white patches by branch, in nats a position; NaN without such a patch.

    The sum of the levels' entropies, so at least that of the codes together. 0: all such patches have the
    same codes. A model that sees the codes around a patch may be able to predict a part of it.
    """
    usages = codebook_usages(tokenizer)
    for pixels in pixel_batches(processor, images):
        white = white_patches(pixels, processor, tokenizer.config.grid_size)
        codes = tokenizer.encode(pixels.to(tokenizer.device))
        for branch, usage in usages.items():
            usage.update(getattr(codes, branch).cpu()[white])
    return {
        branch: sum(map(math.log, usage.compute()["perplexity"])) if usage.counts.any() else math.nan
        for branch, usage in usages.items()
    }


def white_patches(
    pixels: Tensor, processor: DualTokenizerImageProcessor, grid_size: tuple[int, int]
) -> Tensor:
    """Which patches of normalised images (B, 3, S, S) are white all over: bool (B, H, W)."""
    rows, columns = grid_size
    white = processor(Image.new("RGB", (8, 8), "white"))["pixel_values"][:, :, :1, :1]
    same = ((pixels - white).abs() < _SAME).all(dim=1)
    return same.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).all(dim=4).all(dim=2)
