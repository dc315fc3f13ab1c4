"""Batches for a tokenizer's metrics: images, reconstructions, codes, embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor, VisualCodes
from ..data.image_sets import Sample

CROPS = ("none", "center")


@dataclass
class Batch:
    """uint8 images and reconstructions (B, 3, S, S), codes, embeddings (B, E)."""

    samples: list[Sample]
    originals: Tensor
    reconstructions: Tensor | None
    codes: VisualCodes
    features: Tensor | None


def pixel_batches(
    processor: DualTokenizerImageProcessor, images: Sequence[Image.Image], size: int = 64
) -> Iterator[Tensor]:
    """Normalised batches (B, 3, S, S) of images in memory."""
    for start in range(0, len(images), size):
        yield processor(list(images[start : start + size]))["pixel_values"]


@torch.inference_mode()
def run_tokenizer(
    tokenizer: DualTokenizer,
    processor: DualTokenizerImageProcessor,
    samples: list[Sample],
    crop: str = "none",
    reconstruct: bool = True,
    embed: bool = True,
) -> Batch:
    """Encode one batch of readable images; optionally decode and embed it."""
    images = [sample.image for sample in samples if sample.image is not None]
    if crop == "center":
        images = [center_square(image, processor.side) for image in images]
    pixel_values = processor(images)["pixel_values"]
    given = pixel_values.to(tokenizer.device, tokenizer.dtype)
    features = None
    if embed:
        output = tokenizer(given, reconstruct=False)
        codes, features = output.codes, output.pooled
    else:
        codes = tokenizer.encode(given)
    decoded = _to_bytes(processor, tokenizer.decode(codes.pixel)) if reconstruct else None
    return Batch(samples, _to_bytes(processor, pixel_values), decoded, codes, features)


def _to_bytes(processor: DualTokenizerImageProcessor, pixel_values: Tensor) -> Tensor:
    """Normalised images -> uint8 (B, 3, S, S), by the processor's own rounding."""
    images = np.stack([np.asarray(image) for image in processor.to_images(pixel_values)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def center_square(image: Image.Image, side: int) -> Image.Image:
    """The central square at `side` pixels, as in ADM's and LlamaGen's evaluations: halved by boxes while at
    least twice as large, the shorter side resized to `side` by bicubic filtering, then cropped."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
