"""Rank texts for an image by the towers of a small SigLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import UserError, first_line
from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor
from ..metrics.ranking import ranks_of
from .retention import zero_shot_accuracy
from .text_tower import TextIds

_BATCH = 256


class TextRanker:
    """Ranks texts by their similarity to an image, with the towers of one saved folder.

    That is a visual tokenizer with a text tower, or a SigLIP, with image processor and text tokenizer.
    Raises UserError when one of them is missing.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.device = device
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            self._images, self._texts = _towers(str(folder), config.model_type, device)
            self._processor = DualTokenizerImageProcessor.from_pretrained(folder)
            self._text_ids = TextIds(
                AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
                config.text_config.max_position_embeddings,
            )
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(
                f"{folder} cannot rank texts: it needs an image and a text tower ({first_line(error)})."
            ) from error

    @torch.inference_mode()
    def ranks(self, images: Sequence[Image.Image], correct: Sequence[int], texts: Sequence[str]) -> list[int]:
        """For each image the rank, from 0, of `texts[correct]` among all texts."""
        found: list[int] = ranks_of(self._embed_images(images) @ self._embed_texts(texts).T, correct).tolist()
        return found

    @torch.inference_mode()
    def accuracy(self, images: Sequence[Image.Image], texts: Sequence[str]) -> float:
        """Percent of images whose text ranks first among all distinct texts."""
        return zero_shot_accuracy(self._embed_images(images), texts, self._embed_texts)

    def _embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        return _embedded(self._processor(list(images))["pixel_values"], self._images, self.device)

    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        return _embedded(self._text_ids(texts), self._texts, self.device)


def _embedded(batch: Tensor, tower: Callable[[Tensor], Tensor], device: str) -> Tensor:
    """Normalised embeddings on the CPU, (B, E) in fp32."""
    parts = [tower(part.to(device)).float().cpu() for part in batch.split(_BATCH)]
    return F.normalize(torch.cat(parts), dim=-1)


def _towers(
    folder: str, model_type: str, device: str
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    from transformers import SiglipModel

    if model_type != "siglip":
        tokenizer = DualTokenizer.from_pretrained(folder).to(device).eval()
        return tokenizer.get_image_features, tokenizer.get_text_features
    model: Any = SiglipModel.from_pretrained(folder, trust_remote_code=False)
    model.to(device).eval()
    return (
        lambda pixels: model.vision_model(pixel_values=pixels).pooler_output,
        lambda ids: model.text_model(input_ids=ids).pooler_output,
    )
