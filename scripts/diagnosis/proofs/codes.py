"""Images have the same codes on every device, whatever number formats the program has allowed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ....data_pipelines.scenes.scene import random_scene, render
from ....mllm import DualTokenPipeline
from ....tokenizer import DualTokenizer
from .evidence import Evidence, Row, Setting, at_least, evidence

IMAGES = 64
#: Sums in another order move a vector by its last bits; rarely one that is as near to two codes.
LEAST_SHARE = 0.999


def prove(setting: Setting) -> Evidence:
    return evidence(_rows(setting))


def _rows(setting: Setting) -> Iterator[Row]:
    pixels = _pixels()
    reference = _codes(_tokenizer("cpu"), pixels)
    devices = [f"cuda:{index}" for index in range(setting.gpus)] if setting.on_gpu else ["cpu"]
    for device in devices:
        tokenizer = _tokenizer(device)
        strict = _codes(tokenizer, pixels)
        yield at_least(
            f"share of codes equal to the CPU's, {device}", _agreement(strict, reference), LEAST_SHARE
        )
        allowed = _with_tf32_allowed(tokenizer, pixels)
        yield at_least(
            f"share of codes that stay when TF32 is allowed, {device}", _agreement(allowed, strict), 1.0
        )
        alone = torch.cat([_codes(tokenizer, image) for image in pixels.split(1)])
        yield at_least(
            f"share of codes equal alone and in a batch, {device}", _agreement(alone, strict), LEAST_SHARE
        )


def _pixels() -> Tensor:
    """Rendered scenes, (IMAGES, 3, H, W)."""
    processor = DualTokenPipeline.from_pretrained("nano", device="cpu").processor
    images = [render(random_scene(np.random.default_rng(number)), 64) for number in range(IMAGES)]
    return processor.image_processor(images, return_tensors="pt")["pixel_values"]


def _tokenizer(device: str) -> DualTokenizer:
    return DualTokenPipeline.from_pretrained("nano", device=device).model.require_visual_tokenizer()


@torch.no_grad()
def _codes(tokenizer: DualTokenizer, pixels: Tensor) -> Tensor:
    codes = tokenizer.encode(pixels.to(tokenizer.device))
    return torch.cat([codes.pixel, codes.semantic], dim=-1).cpu()


def _with_tf32_allowed(tokenizer: DualTokenizer, pixels: Tensor) -> Tensor:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        return _codes(tokenizer, pixels)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _agreement(one: Tensor, other: Tensor) -> float:
    return float((one == other).float().mean())
