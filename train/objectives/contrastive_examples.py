"""Images and their captions as examples of the contrastive objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ...common.errors import first_line, shown
from ...data_pipelines.records import Record, RecordError
from ...data_pipelines.scenes.scene import Scene, patch_classes
from ...tokenizer import DualTokenizerImageProcessor
from .base import image_of, naming
from .examples import Examples
from .tokenizer.consistency import BACKGROUND_SHARE, content_groups

#: The class of a patch that is left out of the loss.
IGNORED = -100
_CHARACTERS_PER_TOKEN = 100  # an upper bound


class Pair(NamedTuple):
    """Normalised pixels (3, S, S), caption ids (L,), and patch classes (G·G,; ignored without a scene)."""

    pixels: torch.Tensor
    caption: torch.Tensor
    patches: np.ndarray


@dataclass(frozen=True)
class ContrastiveExamples(Examples):
    """The first image of each record and its text; for scenes also the class of each of grid² patches.

    Args:
        class_weights: weight of each patch class in the loss of patches, or None without that loss.
        finds_backgrounds: whether batches have the equal patches of backgrounds, for the consistency loss.
    """

    image_processor: DualTokenizerImageProcessor
    tokenizer: Any
    max_text_length: int
    grid: int
    class_weights: torch.Tensor | None
    finds_backgrounds: bool

    def prepare(self, record: Record, draw: int) -> Pair:
        image, caption = image_and_caption(record)
        with naming(record):
            ids = self._caption_ids(caption)
            pixels = self.image_processor(image)["pixel_values"][0]
        return Pair(pixels, ids, self._patches(record))

    def _caption_ids(self, caption: str) -> torch.Tensor:
        longest = self.max_text_length
        text = self.tokenizer(
            # The rest cannot be among the first tokens, and a very long text would cost time and memory.
            caption[: _CHARACTERS_PER_TOKEN * longest],
            padding="max_length",
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        return text["input_ids"][0]

    def _patches(self, record: Record) -> np.ndarray:
        scene = record.metadata.get("scene")
        if scene is None:
            return np.full(self.grid**2, IGNORED)
        try:
            return patch_classes(Scene.from_dict(scene), self.grid).reshape(-1)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise RecordError(f"Record {shown(record.id)}: its metadata has no scene ({reason})") from error

    def collate(self, examples: list[Pair]) -> dict[str, Any]:
        patches = torch.from_numpy(np.stack([example.patches for example in examples])).long()
        batch: dict[str, Any] = {
            "pixel_values": torch.stack([example.pixels for example in examples]),
            "input_ids": torch.stack([example.caption for example in examples]),
            "patches": patches,
        }
        counts = {"contrastive": float(len(examples))}
        if self.class_weights is not None:
            weights = self.class_weights[patches.clamp(min=0)]
            counts["patch"] = float(weights[patches != IGNORED].sum())
        if self.finds_backgrounds:
            counts["consistency"] = float(len(examples))
            groups = content_groups(batch["pixel_values"], self.grid, BACKGROUND_SHARE)
            batch |= {"groups": groups, "num_groups": int(groups.max()) + 1}
        return {**batch, "counts": counts}


def image_and_caption(record: Record) -> tuple[Any, str]:
    """The first image and its text: the prompt it was generated for, or the first answer about it.

    Errors:
        RecordError for a record without image or text.
    """
    images = record.image_parts()
    is_generated = any(role == "assistant" and part["type"] == "image" for role, part in record.parts())
    wanted = "user" if is_generated else "assistant"
    captions = (part["text"] for role, part in record.parts() if role == wanted and part["type"] == "text")
    caption = next(captions, None)
    if not images or caption is None:
        raise RecordError(f"Record {shown(record.id)} is not an image with a text")
    return image_of(images[0], record), caption
