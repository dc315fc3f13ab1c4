"""The checker of generated scenes applied to reconstructions: the ceiling of its verdicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from ...data_pipelines.records import Record
from ...data_pipelines.scenes.checker import check
from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor
from ..data.held_out import images_of
from ..scorers.averages import percent
from .batch import pixel_batches


@torch.inference_mode()
def checked_reconstructions(
    tokenizer: DualTokenizer, processor: DualTokenizerImageProcessor, scenes: Sequence[Record]
) -> float | None:
    """Percent of true scenes that the checker finds correct after reconstruction."""
    images: list[Image.Image] = []
    for pixels in pixel_batches(processor, images_of(scenes)):
        codes = tokenizer.encode(pixels.to(tokenizer.device))
        images += processor.to_images(tokenizer.decode(codes.pixel))
    pairs = zip(scenes, images, strict=True)
    return percent(check(scene.metadata["spec"], image).correct for scene, image in pairs)
