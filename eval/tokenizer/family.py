"""What a family of tokenizer metrics is, and the options that some of them take."""

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
    """What single metrics need.

    lpips_weights: state dict of `lpips.LPIPS(net="vgg")`. fid_weights: torch-fidelity's Inception file;
    `feature_extractor` replaces it by other features. Without them LPIPS and rFID are null, as nothing is
    fetched.
    classes: names of the classes, by number; default: those the images come with, or ImageNet's. templates:
    prompts with "{}"; default: CLIP's 80. text_tokenizer: of the tokenizer's text side, for zero_shot and
    retrieval.
    crop: "none" resizes images to a square as the tokenizer's processor does; "center" cuts the middle square
    first, as ImageNet results of tokenizer papers do.
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
    """A tokenizer, the images that it is measured on, and the options of the metrics."""

    tokenizer: DualTokenizer
    images: ImageSet
    options: MetricOptions


class Unavailable(Exception):
    """A family whose metrics cannot be computed: names of the metrics that are null, and the reason."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


class Family(ABC):
    """A few metrics that are gathered from the same part of a batch. Built with a `Subject`.

    needs_reconstruction, needs_features: what has to be in its batches. notes: remarks on its values.

    Raises:
        Unavailable: what they need is not given.
    """

    needs_reconstruction = False
    needs_features = False

    def __init__(self, subject: Subject) -> None:
        self.notes: list[str] = []

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Gather from a batch."""

    @abstractmethod
    def compute(self) -> Values:
        """The values over the batches of all processes, each of which has to call."""
