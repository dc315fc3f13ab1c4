"""Families of tokenizer metrics, and their options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...tokenizer import DualTokenizer
from ..data.image_sets import ImageSet
from ..metrics.fid import FeatureExtractor
from ..metrics.zero_shot import Template
from .batch import Batch

#: Metrics by name: a number, one for each depth, or None where it cannot be computed.
Values = Mapping[str, float | list[float] | None]


@dataclass(frozen=True)
class MetricOptions:
    """Options of single metrics.

    lpips_weights: state dict of `lpips.LPIPS(net="vgg")`. fid_weights: torch-fidelity's Inception file, or
    feature_extractor: other features. Without them LPIPS and rFID are null, as nothing is downloaded.
    classes: names of the classes, by number; default: those of the images, or ImageNet's. templates: prompts
    with "{}"; default: CLIP's 80. text_tokenizer: that of the text tower, for zero_shot and retrieval.
    crop: "none" makes images square by the tokenizer's `resize_mode`; "center" cuts the central square first,
    as for ImageNet results in tokenizer papers.
    """

    lpips_weights: Path | None = None
    fid_weights: Path | None = None
    feature_extractor: FeatureExtractor | None = None
    classes: Sequence[str] | None = None
    templates: Sequence[Template] | None = None
    text_tokenizer: Any = None
    crop: str = "none"


@dataclass(frozen=True)
class Subject:
    """A tokenizer, the images to measure it on, and the options of the metrics."""

    tokenizer: DualTokenizer
    images: ImageSet
    options: MetricOptions


class Unavailable(Exception):
    """A family whose metrics cannot be computed: the name of the null metrics, and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class Family(ABC):
    """Metrics computed from the same part of a batch. Raises Unavailable if an input is missing.

    needs_reconstruction, needs_features: what its batches must contain. notes: remarks on its values.
    """

    needs_reconstruction = False
    needs_features = False

    def __init__(self, subject: Subject) -> None:
        self.notes: list[str] = []

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Add a batch."""

    @abstractmethod
    def compute(self) -> Values:
        """The values over the batches of all processes, each of which must call it."""
