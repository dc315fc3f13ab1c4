"""Retrieval between images and their captions."""

from __future__ import annotations

from typing import Any

import torch

from ..metrics.retrieval import RetrievalRecall
from .batch import Batch
from .family import Family, Subject, Unavailable, Values
from .text_tower import TextIds, TextTower


class RetrievalFamily(Family):
    """R@1, 5 and 10 both ways, over the images that have captions."""

    needs_features = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        tokenizer, options = subject.tokenizer, subject.options
        if options.text_tokenizer is None:
            raise Unavailable("retrieval", "needs the text tokenizer of the visual tokenizer's folder")
        self._tower, self._ids = TextTower(tokenizer), TextIds.of(tokenizer, options.text_tokenizer)
        vision: Any = tokenizer.config.vision_config
        self._recall = RetrievalRecall(
            int(vision["hidden_size"] if isinstance(vision, dict) else vision.hidden_size)
        )

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
