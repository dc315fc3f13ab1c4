"""A small SigLIP from scratch, for backbones that do not start from released weights.

The loss is open_clip's SigLIP loss. Scenes may add a dense loss: the class (shape and colour) of the object
in each patch is predicted from the states that the semantic quantizer later receives, because image-text
pairs alone hardly teach a small encoder the positions of objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoTokenizer, SiglipConfig, SiglipModel

from ...common.errors import first_line, shown
from ...data_pipelines.records import Record, RecordError
from ...data_pipelines.scenes.scene import NUM_PATCH_CLASSES, Scene, patch_classes
from ...tokenizer import DualTokenizerImageProcessor
from ..config.contrastive import ContrastiveConfig
from .base import Batch, LossTerm, Objective, cast, image_of, naming
from .tokenizer.consistency import BACKGROUND_SHARE, consistency_loss, content_groups

_IGNORED = -100
_CHARACTERS_PER_TOKEN = 100  # an upper bound


class Pair(NamedTuple):
    """Normalised pixels (3, S, S), caption ids (L,), and patch classes (G·G,; ignored without a scene)."""

    pixels: torch.Tensor
    caption: torch.Tensor
    patches: np.ndarray


class ContrastiveObjective(Objective):
    """Trains ``SiglipModel``; exports it with its text tokenizer and image processor as one folder."""

    def __init__(self, config: ContrastiveConfig) -> None:
        from open_clip.loss import SigLipLoss

        super().__init__()
        self.config = config
        self.tokenizer = AutoTokenizer.from_pretrained(config.text_tokenizer, trust_remote_code=False)
        text = {
            **config.text_config,
            "vocab_size": len(self.tokenizer),
            "max_position_embeddings": config.max_text_length,
        }
        siglip = SiglipConfig(vision_config=config.vision_config, text_config=text)
        self.model = SiglipModel(siglip)
        vision: Any = siglip.vision_config
        self.grid = vision.image_size // vision.patch_size
        self.patch_head = nn.Linear(vision.hidden_size, NUM_PATCH_CLASSES) if config.patch_weight else None
        self.image_processor = DualTokenizerImageProcessor(size=vision.image_size)
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.siglip_loss = SigLipLoss(rank=rank, world_size=world)
        nn.init.constant_(self.model.logit_scale, np.log(10.0))  # SigLIP paper: t' = log 10, b = -10
        nn.init.constant_(self.model.logit_bias, -10.0)

    def prepare(self, record: Record, draw: int) -> Pair:
        image, caption = image_and_caption(record)
        with naming(record):
            ids = self._caption_ids(caption)
            pixels = self.image_processor(image)["pixel_values"][0]
        return Pair(pixels, ids, self._patches(record))

    def _caption_ids(self, caption: str) -> torch.Tensor:
        longest = self.config.max_text_length
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
            return np.full(self.grid**2, _IGNORED)
        try:
            return patch_classes(Scene.from_dict(scene), self.grid).reshape(-1)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise RecordError(f"Record {shown(record.id)}: its metadata has no scene ({reason})") from error

    def collate(self, examples: list[Pair]) -> Batch:
        return {
            "pixel_values": torch.stack([example.pixels for example in examples]),
            "input_ids": torch.stack([example.caption for example in examples]),
            "patches": torch.from_numpy(np.stack([example.patches for example in examples])).long(),
        }

    def target_counts(self, batch: Batch) -> dict[str, float]:
        counts = {"contrastive": float(len(batch["input_ids"]))}
        if self.patch_head is not None:
            weights = self._patch_weights()[batch["patches"].clamp(min=0)]
            counts["patch"] = float(weights[batch["patches"] != _IGNORED].sum())
        if self.config.consistency_weight:
            counts["consistency"] = float(len(batch["input_ids"]))
        return counts

    def _patch_weights(self) -> torch.Tensor:
        """Weight of each patch class, (NUM_PATCH_CLASSES,); class 0 is the background."""
        weights = torch.ones(NUM_PATCH_CLASSES)
        weights[0] = self.config.background_weight
        return weights

    def forward(self, **batch: Any) -> dict[str, LossTerm]:
        pixel_values, input_ids, patches = (batch[key] for key in ("pixel_values", "input_ids", "patches"))
        vision = self.model.vision_model(pixel_values=pixel_values, output_hidden_states=True)
        text = self.model.text_model(input_ids=input_ids)
        image_features = nn.functional.normalize(vision.pooler_output, dim=-1)
        text_features = nn.functional.normalize(text.pooler_output, dim=-1)
        loss = self.siglip_loss(
            image_features, text_features, self.model.logit_scale.exp(), self.model.logit_bias
        )
        terms = {"contrastive": LossTerm(loss * len(input_ids), self.config.contrastive_weight)}
        states = vision.hidden_states[self.config.patch_layer]
        if self.patch_head is not None:
            total = nn.functional.cross_entropy(
                self.patch_head(states).flatten(0, 1).float(),
                patches.flatten(),
                weight=self._patch_weights().to(states.device),
                ignore_index=_IGNORED,
                reduction="sum",
            )
            terms["patch"] = LossTerm(total, self.config.patch_weight)
        if self.config.consistency_weight:
            groups = content_groups(pixel_values, self.grid, BACKGROUND_SHARE)
            consistency = consistency_loss(states, groups) * len(input_ids)
            terms["consistency"] = LossTerm(consistency, self.config.consistency_weight)
        return terms

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        cast(self.model, dtype)
        self.model.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def initialise_from(self, folder: str) -> None:
        self.model.load_state_dict(SiglipModel.from_pretrained(folder, trust_remote_code=False).state_dict())


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
