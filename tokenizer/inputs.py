"""Conversion and checks of the tokenizer's inputs: images, codes, token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..common.errors import UserError, shown
from .configuration import DualTokenizerConfig
from .outputs import VisualCodes
from .processing import DualTokenizerImageProcessor


def images_to_pixels(tokenizer: PreTrainedModel, images: Any) -> Tensor:
    """Floating tensors, also in a processor's output, unchanged; anything else through an image processor."""
    if isinstance(images, Mapping) and "pixel_values" in images:
        images = images["pixel_values"]
    if isinstance(images, Tensor) and images.dim() and images.is_floating_point():
        return images
    processor = DualTokenizerImageProcessor.for_config(cast(DualTokenizerConfig, tokenizer.config))
    return processor(images, return_tensors="pt")["pixel_values"].to(tokenizer.device, tokenizer.dtype)


def codes_to_decode(tokenizer: PreTrainedModel, codes: Any) -> Tensor:
    """Pixel codes (B, H, W, D) as a tensor on the tokenizer's device; UserError for invalid ones."""
    given = codes.pixel if isinstance(codes, VisualCodes) else codes
    try:
        tensor = given if isinstance(given, Tensor) else torch.from_numpy(np.asarray(given))
    except (TypeError, ValueError):
        raise UserError(f"pixel codes are {shown(codes)}; give a tensor of integers") from None
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise UserError(f"pixel codes are {tensor.dtype}; give integers, as encode(images) returns")
    tensor = tensor.to(tokenizer.device)
    config = tokenizer.config
    expected = (*config.grid_size, config.pixel_quantizer.depth)
    if tensor.dim() != 4 or tuple(tensor.shape[1:]) != expected:
        raise UserError(
            f"pixel codes have shape {tuple(tensor.shape)}; this tokenizer decodes (batch, "
            f"{', '.join(map(str, expected))})"
        )
    count = config.pixel_quantizer.num_codes
    if tensor.numel() and not bool(((tensor >= 0) & (tensor < count)).all()):
        raise UserError(
            f"pixel codes range from {int(tensor.min())} to {int(tensor.max())}; this tokenizer has "
            f"the codes 0 to {count - 1}"
        )
    return tensor


def check_images(tokenizer: PreTrainedModel, pixel_values: Tensor) -> None:
    """Raise UserError for anything but normalised images (B, 3, S, S) of the tokenizer's size."""
    side = tokenizer.config.image_size
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        kind = pixel_values.dtype if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
        raise UserError(
            f"pixel_values are given as {kind}; make them with "
            'DualTokenizerImageProcessor: processor(images)["pixel_values"]'
        )
    if pixel_values.layout != torch.strided or pixel_values.is_meta != (tokenizer.device.type == "meta"):
        raise UserError("pixel_values are a sparse or meta tensor; give a dense one")
    if pixel_values.dim() != 4 or 0 in pixel_values.shape or pixel_values.shape[1:] != (3, side, side):
        raise UserError(
            f"pixel_values have shape {tuple(pixel_values.shape)}; this tokenizer reads (batch, 3, "
            f"{side}, {side}), as DualTokenizerImageProcessor makes them"
        )
    # In training the loss shows it, without waiting for the device.
    if not tokenizer.training and not bool(torch.isfinite(pixel_values).all()):
        raise UserError("pixel_values hold infinite numbers or NaN; check the normalisation of the images")


def check_text_ids(config: DualTokenizerConfig, input_ids: Tensor) -> None:
    """Raise UserError for anything but token ids of the text tower."""
    text = config.text_config
    longest, count = text.max_position_embeddings, text.vocab_size
    if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int32, torch.int64):
        raise UserError(f"input_ids are {shown(input_ids)}; give a tensor of token ids (batch, {longest})")
    if input_ids.dim() != 2 or not input_ids.numel() or input_ids.shape[1] > longest:
        raise UserError(
            f"input_ids have shape {tuple(input_ids.shape)}; this tokenizer reads (batch, {longest})"
        )
    least, most = int(input_ids.min()), int(input_ids.max())
    if least < 0 or most >= count:
        raise UserError(
            f"input_ids range from {least} to {most}; the text tower has the ids 0 to {count - 1}"
        )
