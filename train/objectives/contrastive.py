"""A small SigLIP from scratch, for backbones that do not start from released weights.

The loss is open_clip's SigLIP loss. Scenes may add a dense loss: the class (shape and colour) of the object
in each patch is predicted from the states that the semantic quantizer later receives, because image-text
pairs alone hardly teach a small encoder the positions of objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import AutoTokenizer, SiglipConfig, SiglipModel

from ...data_pipelines.scenes.scene import NUM_PATCH_CLASSES
from ...tokenizer import DualTokenizerImageProcessor
from ..config.contrastive import ContrastiveConfig
from .base import Batch, LossTerm, Objective, cast
from .contrastive_examples import IGNORED, ContrastiveExamples
from .tokenizer.consistency import consistency_loss


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
        self.image_processor = DualTokenizerImageProcessor(
            vision.image_size, resize_mode=config.resize_mode, resample=config.resample
        )
        self.examples = ContrastiveExamples(
            self.image_processor,
            self.tokenizer,
            config.max_text_length,
            self.grid,
            class_weights=None if self.patch_head is None else self._patch_weights("cpu"),
            finds_backgrounds=bool(config.consistency_weight),
        )
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.siglip_loss = SigLipLoss(rank=rank, world_size=world)
        nn.init.constant_(self.model.logit_scale, np.log(10.0))  # SigLIP paper: t' = log 10, b = -10
        nn.init.constant_(self.model.logit_bias, -10.0)

    def target_counts(self, batch: Batch) -> dict[str, float]:
        counts: dict[str, float] = batch["counts"]
        return counts

    def _patch_weights(self, device: torch.device | str) -> torch.Tensor:
        """Weight of each patch class, (NUM_PATCH_CLASSES,); class 0 is the background."""
        weights = torch.ones(NUM_PATCH_CLASSES, device=device)
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
                weight=self._patch_weights(states.device),
                ignore_index=IGNORED,
                reduction="sum",
            )
            terms["patch"] = LossTerm(total, self.config.patch_weight)
        if self.config.consistency_weight:
            consistency = consistency_loss(states, batch["groups"], batch["num_groups"]) * len(input_ids)
            terms["consistency"] = LossTerm(consistency, self.config.consistency_weight)
        return terms

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        cast(self.model, dtype)
        self.model.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def initialise_from(self, folder: str) -> None:
        self.model.load_state_dict(SiglipModel.from_pretrained(folder, trust_remote_code=False).state_dict())
