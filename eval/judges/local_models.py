"""Scoring models in local folders. Only the judge of answers may come from the hub."""

import os
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

from ...common.loading.model_source import PRETRAINED_FOLDER
from ..metrics.clip_score import LocalClip
from ..metrics.fid import InceptionFeatures
from ..tokenizer.text_ranker import TextRanker
from .detector import LocalDetector
from .protocols import ENVIRONMENT, Judges, not_given
from .text_judge import LocalTextJudge
from .vqa_judge import LocalVqaJudge

#: The default ranker: the image and text towers of the packaged tokenizer.
PACKAGED_RANKER = PRETRAINED_FOLDER / "nano" / "visual_tokenizer"


@dataclass(frozen=True)
class LocalModels:
    """Locations of scoring models, and the device they run on.

    Args:
        clip: folder of a CLIP (transformers or open_clip).
        detector: folder of an object detector of transformers that knows the classes of COCO.
        judge: folder of a model that answers questions about images, to judge generated images; folder or
            hub id of a chat model, to judge answers.
        inception: torch-fidelity's weights file.
        ranker: folder of a visual tokenizer with a text tower, or of its SigLIP teacher.
    """

    clip: Path | None = None
    detector: Path | None = None
    judge: Path | None = None
    inception: Path | None = None
    ranker: Path | None = PACKAGED_RANKER
    device: str = "cpu"

    @classmethod
    def from_environment(cls) -> Self:
        """Settings from DUALTOKEN_EVAL_CLIP, _DETECTOR, _JUDGE, _INCEPTION, _RANKER and _DEVICE."""
        named = {field.name: os.environ.get(ENVIRONMENT + field.name.upper()) for field in fields(cls)}
        device = named.pop("device") or "cpu"
        return cls(**{name: Path(value) for name, value in named.items() if value}, device=device)

    def judges(self) -> Judges:
        """The models, each loaded at its first use."""
        return Judges(
            clip=self._source(LocalClip, self.clip),
            detector=self._source(LocalDetector, self.detector),
            vqa_judge=self._source(LocalVqaJudge, self.judge),
            text_judge=self._source(LocalTextJudge, self.judge),
            inception=self._source(InceptionFeatures, self.inception),
            ranker=self._source(TextRanker, self.ranker),
        )

    def _source(self, kind: Any, where: Path | None) -> Any:
        return not_given if where is None else cache(partial(kind, where, self.device))
