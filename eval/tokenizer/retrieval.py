"""Retrieval between images and their captions."""

from __future__ import annotations

from typing import Any

import torch

from ..metrics.retrieval import RetrievalRecall
from .batch import Batch
from .family import Subject, Values
from .text_tower import TextFamily


class RetrievalFamily(TextFamily):
    """R@1, 5 and 10 both ways, over the images that have captions."""

    name = "retrieval"

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        vision: Any = subject.tokenizer.config.vision_config
        size = vision["hidden_size"] if isinstance(vision, dict) else vision.hidden_size
        self._recall = RetrievalRecall(int(size))

    def update(self, batch: Batch) -> None:
        assert batch.features is not None
        captioned = [row for row, sample in enumerate(batch.samples) if sample.texts]
        if captioned:
            texts = [list(batch.samples[row].texts) for row in captioned]
            embedded = torch.cat([self._tower.encode_text(self._ids(own)) for own in texts])
            self._recall.update(
                batch.features[captioned], embedded, torch.tensor([len(own) for own in texts])
            )

    def compute(self) -> Values:
        found = self._recall.compute()
        if not found["retrieval_n"]:
            self.notes.append("retrieval is null: no image has a caption")
        return found
