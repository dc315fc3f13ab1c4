"""Scoring models on disk. Only the judge of answers may come from the hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from ...common.loading.model_source import PRETRAINED_FOLDER
from ..metrics.clip_score import LocalClip
from ..metrics.fid import InceptionFeatures
from ..tokenizer.text_ranker import TextRanker
from .detector import LocalDetector
from .protocols import ENVIRONMENT, Judges, not_given
from .text_judge import LocalTextJudge
from .vqa_judge import LocalVqaJudge

#: Ranks the names of emoji where no other ranker is given: the towers of the packaged tokenizer.
PACKAGED_RANKER = PRETRAINED_FOLDER / "nano" / "visual_tokenizer"


@dataclass(frozen=True)
class LocalModels:
    """Where scoring models are stored, and the device they run on.

    Args:
        clip: folder of a CLIP (transformers or open_clip).
        detector: folder of an object detector of transformers with the names of COCO.
        judge: folder of a model that answers questions about images, for generated images; folder or hub id
            of a chat model, for answers.
        inception: torch-fidelity's weights file.
        ranker: folder of a visual tokenizer with a text side, or of its SigLIP teacher.
        device: where they run.
    """

    clip: Path | None = None
    detector: Path | None = None
    judge: Path | None = None
    inception: Path | None = None
    ranker: Path | None = PACKAGED_RANKER
    device: str = "cpu"

    @classmethod
    def from_environment(cls) -> LocalModels:
        """The models that DUALTOKEN_EVAL_CLIP, _DETECTOR, _JUDGE, _INCEPTION and _RANKER name; _DEVICE."""
        named = {field.name: os.environ.get(ENVIRONMENT + field.name.upper()) for field in fields(cls)}
        device = named.pop("device") or "cpu"
        return cls(**{name: Path(value) for name, value in named.items() if value}, device=device)

    def judges(self) -> Judges:
        """The models, each loaded once, when it is first needed."""
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
