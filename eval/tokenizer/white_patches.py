"""Entropy of the codes of white patches: noise that a language model cannot predict."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor
from .batch import pixel_batches
from .code_usage import codebook_usages

_SAME = 1e-3  # of normalised values, less than one grey level


@torch.inference_mode()
def white_patch_entropy(
    tokenizer: DualTokenizer, processor: DualTokenizerImageProcessor, images: Sequence[Image.Image]
) -> dict[str, float]:
    """Entropy of the codes of all-white patches by branch, in nats a position; NaN without such a patch.

    The sum over the levels, an upper bound of the joint entropy; 0 if all white patches have the same codes.
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
    """Which patches of normalised images (B, 3, S, S) are entirely white: bool (B, H, W)."""
    rows, columns = grid_size
    white = processor(Image.new("RGB", (8, 8), "white"))["pixel_values"][:, :, :1, :1]
    same = ((pixels - white).abs() < _SAME).all(dim=1)
    return same.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).all(dim=4).all(dim=2)
