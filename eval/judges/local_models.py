"""Models from disk that score: a CLIP, a detector, a judge, Inception. Only a judge may come from the hub.

They are named by `use_local_models`, or by environment variables (DUALTOKEN_EVAL_CLIP and so on), because a
benchmark's `score` takes predictions only. Where one is not named, what needs it is null with the reason.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..metrics.clip_score import LocalClip
    from ..metrics.fid import InceptionFeatures
    from .detector import LocalDetector
    from .text_judge import TextJudge
    from .vqa_judge import LocalJudge

PREFIX = "DUALTOKEN_EVAL_"


@dataclass(frozen=True)
class LocalModels:
    """Where scoring models lie, and the device they run on.

    clip: folder of a CLIP (transformers or open_clip). detector: folder of an object detector of transformers
    with the names of COCO. judge: folder of a model that answers questions about images, for drawings; folder
    or hub id of a chat model, for answers. inception: torch-fidelity's weights file.
    """

    clip: Path | None = None
    detector: Path | None = None
    judge: Path | None = None
    inception: Path | None = None
    device: str = "cpu"

    @classmethod
    def from_environment(cls) -> LocalModels:
        """What DUALTOKEN_EVAL_CLIP, _DETECTOR, _JUDGE, _INCEPTION and _DEVICE name."""
        named = {field.name: os.environ.get(PREFIX + field.name.upper()) for field in fields(cls)}
        device = named.pop("device") or "cpu"
        return cls(**{name: Path(value) for name, value in named.items() if value}, device=device)


_chosen: LocalModels | None = None


def use_local_models(models: LocalModels | None) -> None:
    """Score with these from now on; None goes back to the environment's."""
    global _chosen
    _chosen = models


def local_models() -> LocalModels:
    """The models to score with."""
    return LocalModels.from_environment() if _chosen is None else _chosen


def missing(name: str) -> str:
    """The reason told where the model `name` is not given."""
    return f"no local {name} is given (--{name}, or {PREFIX}{name.upper()})"


def local_clip() -> LocalClip | None:
    """The CLIP to score with."""
    return _named("clip", "metrics.clip_score", "LocalClip")


def local_detector() -> LocalDetector | None:
    """The detector to score with."""
    return _named("detector", "judges.detector", "LocalDetector")


def local_judge() -> LocalJudge | None:
    """The judge of drawings to score with."""
    return _named("judge", "judges.vqa_judge", "LocalJudge")


def local_text_judge() -> TextJudge | None:
    """The judge of answers to score with."""
    return _named("judge", "judges.text_judge", "TextJudge")


def local_inception() -> InceptionFeatures | None:
    """The features of FID."""
    return _named("inception", "metrics.fid", "InceptionFeatures")


def _named(name: str, module: str, kind: str) -> Any:
    """The model that `LocalModels` has under `name`, loaded once; None where none is named."""
    models = local_models()
    where = getattr(models, name)
    return None if where is None else _load(module, kind, where, models.device)


@cache
def _load(module: str, kind: str, where: Path, device: str) -> Any:
    # Imported here, because these modules are heavy and most scores need none of them.
    return getattr(importlib.import_module(f"..{module}", __package__), kind)(where, device)
