"""Zero-shot classification by text prompts, with open_clip's class names and templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import UserError
from ...tokenizer import DualTokenizer
from .packages import optional_package

Template = str | Callable[[str], str]


class TextTower:
    """A tokenizer's text side as open_clip's functions call it: `encode_text(ids, normalize=True)`."""

    def __init__(self, tokenizer: DualTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (B, L) -> embeddings (B, E), in fp32."""
        features = self._tokenizer.get_text_features(text.to(self._tokenizer.device)).float()
        return F.normalize(features, dim=-1) if normalize else features


class TextIds:
    """Texts to ids of the full text length: SigLIP was trained on padded texts and collapses without."""

    def __init__(self, text_tokenizer: Any, length: int) -> None:
        self._text_tokenizer = text_tokenizer
        self._length = length

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Texts -> ids (B, L)."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        encoded = self._text_tokenizer(
            listed, padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        )
        ids: Tensor = encoded["input_ids"]
        return ids


def imagenet_classes() -> list[str]:
    """open_clip's 1000 names, in the order of the ImageNet labels."""
    return list(optional_package("open_clip").IMAGENET_CLASSNAMES)


def imagenet_templates() -> list[Template]:
    """The 80 templates of CLIP."""
    return list(optional_package("open_clip").OPENAI_IMAGENET_TEMPLATES)


def zero_shot_classifier(
    tower: Any, text_ids: Callable[[Any], Tensor], classes: Sequence[str], templates: Sequence[Template]
) -> Tensor:
    """Class embeddings (E, classes), each the normalised mean over the templates, by open_clip.

    tower: anything with `encode_text(ids, normalize=True)`. text_ids: texts -> ids (B, L).
    """
    if len(classes) < 2:
        raise UserError(f"zero-shot classification needs at least two classes, got {len(classes)}")
    build = optional_package("open_clip").build_zero_shot_classifier
    weights: Tensor = build(tower, text_ids, list(classes), list(templates))
    return weights.float().cpu()


@dataclass
class ZeroShotAccuracy:
    """Top-1 and top-5 accuracy in percent. Equal scores count against the model."""

    classifier: Tensor
    top1: int = 0
    top5: int = 0
    count: int = 0

    def update(self, features: Tensor, labels: Sequence[int]) -> None:
        """Add image embeddings (B, E), normalised or not, and their classes."""
        scores = F.normalize(features.float().cpu(), dim=-1) @ self.classifier
        own = scores.gather(1, torch.as_tensor(list(labels), dtype=torch.int64).unsqueeze(1))
        ranks = (scores >= own).sum(dim=1) - 1
        self.top1 += int((ranks < 1).sum())
        self.top5 += int((ranks < 5).sum())
        self.count += len(ranks)

    def merge(self, other: ZeroShotAccuracy) -> None:
        """Add what another process counted."""
        self.top1 += other.top1
        self.top5 += other.top5
        self.count += other.count

    def figures(self) -> dict[str, float | None]:
        """ "zero_shot_top1" and, with more than five classes, "zero_shot_top5"."""
        found = {"zero_shot_top1": self.top1}
        if self.classifier.shape[1] > 5:
            found["zero_shot_top5"] = self.top5
        return {name: 100.0 * hits / self.count if self.count else None for name, hits in found.items()}
