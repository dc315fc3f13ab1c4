"""Zero-shot classification by text prompts, with open_clip's class names and templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import UserError
from ...common.packages import optional_package
from .base import Metric
from .ranking import ranks_of

Template = str | Callable[[str], str]


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


class ZeroShotAccuracy(Metric):
    """Top-1 and top-5 accuracy in percent; equal scores count against the model (`ranks_of`)."""

    full_state_update = False
    hits: Tensor
    count: Tensor

    def __init__(self, classifier: Tensor) -> None:
        super().__init__()
        self.classifier = classifier
        self.cuts = (1, 5) if classifier.shape[1] > 5 else (1,)
        self.add_state("hits", torch.zeros(len(self.cuts), dtype=torch.int64), "sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), "sum")

    def update(self, features: Tensor, labels: Sequence[int]) -> None:
        """Add image embeddings (B, E), normalised or not, and their classes."""
        ranks = ranks_of(F.normalize(features.float().cpu(), dim=-1) @ self.classifier, labels)
        self.hits += torch.stack([(ranks < cut).sum() for cut in self.cuts])
        self.count += len(ranks)

    def compute(self) -> dict[str, float | None]:
        """ "zero_shot_top1" and, with more than five classes, "zero_shot_top5"; "zero_shot_n" images."""
        count = int(self.count)
        found: dict[str, float | None] = {
            f"zero_shot_top{cut}": 100.0 * hits / count if count else None
            for cut, hits in zip(self.cuts, self.hits.tolist(), strict=True)
        }
        return {**found, "zero_shot_n": float(count)}
