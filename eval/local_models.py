"""Models from disk that score drawings: a CLIP, a detector, a judge, Inception. Scoring never fetches one.

They are named by `use_local_models`, or by environment variables (DUALTOKEN_EVAL_CLIP and so on), because a
benchmark's `score` takes predictions only. Where one is not named, what needs it is null with the reason.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .detector import LocalDetector
    from .metrics.clip_score import LocalClip
    from .metrics.fid import InceptionFeatures
    from .vqa_judge import LocalJudge

PREFIX = "DUALTOKEN_EVAL_"


@dataclass(frozen=True)
class LocalModels:
    """Where scoring models lie, and the device they run on.

    clip: folder of a CLIP (transformers or open_clip). detector: folder of an object detector of transformers
    with the names of COCO. judge: folder of a model that answers questions about images. inception:
    torch-fidelity's weights file.
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
    """The CLIP to score with, loaded once; None where none is named."""
    models = local_models()
    return None if models.clip is None else _clip(models.clip, models.device)


def local_detector() -> LocalDetector | None:
    """The detector to score with, loaded once; None where none is named."""
    models = local_models()
    return None if models.detector is None else _detector(models.detector, models.device)


def local_judge() -> LocalJudge | None:
    """The judge to score with, loaded once; None where none is named."""
    models = local_models()
    return None if models.judge is None else _judge(models.judge, models.device)


def local_inception() -> InceptionFeatures | None:
    """The features of FID, loaded once; None where no weights are named."""
    models = local_models()
    return None if models.inception is None else _inception(models.inception, models.device)


@cache
def _clip(folder: Path, device: str) -> LocalClip:
    from .metrics.clip_score import LocalClip

    return LocalClip(folder, device)


@cache
def _detector(folder: Path, device: str) -> LocalDetector:
    from .detector import LocalDetector

    return LocalDetector(folder, device)


@cache
def _judge(folder: Path, device: str) -> LocalJudge:
    from .vqa_judge import LocalJudge

    return LocalJudge(folder, device)


@cache
def _inception(weights: Path, device: str) -> InceptionFeatures:
    from .metrics.fid import InceptionFeatures

    return InceptionFeatures(weights, device)
