"""Generated images as a row of codes, and answers of text and images in turn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.errors import UserError
from ...tokenizer import VisualCodes
from ..configuration import DualTokenConfig


@dataclass(frozen=True)
class InterleavedOutput:
    """One answer: `sequences` (1, L), ids with the prompt's, and the new images' codes (I, P, D), in order.

    prompt_length: number of the prompt's ids.
    images: pixels (I, 3, S, S) of the new images in the image processor's range; None without a visual
        tokenizer.
    """

    sequences: Tensor
    pixel_codes: Tensor
    semantic_codes: Tensor
    prompt_length: int = 0
    images: Tensor | None = None

    def __repr__(self) -> str:
        new = self.sequences.shape[1] - self.prompt_length
        return f"InterleavedOutput({new} new tokens, {self.pixel_codes.shape[0]} images)"


def image_tokens(codes: VisualCodes) -> Tensor:
    """Codes (B, P, Dp) and (B, P, Ds) as one row per image (B, P x (Dp + Ds)), what image mode returns."""
    return torch.cat([codes.pixel, codes.semantic], dim=-1).flatten(1)


def split_image_tokens(config: DualTokenConfig, tokens: Tensor) -> VisualCodes:
    """The inverse of `image_tokens`, for a model of this configuration. UserError for another size."""
    depths = [codebook.depth for codebook in config.codebooks.values()]
    if tokens.ndim != 2 or tokens.shape[1] != config.codes_per_image:
        raise UserError(
            f"image tokens must be (images, {config.codes_per_image}), not {tuple(tokens.shape)}; "
            "pass what generate(generation_mode='image') returned"
        )
    return VisualCodes(*tokens.unflatten(1, (config.num_positions, sum(depths))).split(depths, dim=-1))
