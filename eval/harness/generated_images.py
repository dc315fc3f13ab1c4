"""What benchmarks of drawing share: finding the drawings, CLIPScore, and putting scores together.

Drawings are made once; every scorer whose model is at hand then reads the same files.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from ...common.errors import UserError
from ...common.images.reading import load_image
from ..judges.local_models import local_clip, missing
from .task import Benchmark, Item, Score

_BATCH = 16


@dataclass(frozen=True)
class Drawing:
    """One drawing of an item."""

    item: Item
    path: Path

    def open(self) -> Image.Image:
        """The drawing as RGB."""
        return load_image(self.path)


@dataclass
class Figures:
    """What one scorer found: numbers by name, reasons for those that are None, and what each item scored."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    correct: dict[str, float] = field(default_factory=dict)


class DrawingBenchmark(Benchmark):
    """A benchmark of kind "draw": own figures, and CLIPScore where a local CLIP is given."""

    kind: ClassVar[str] = "draw"
    generation: ClassVar[Mapping[str, Any]] = {}
    headline: ClassVar[str] = "clip_score"

    @abstractmethod
    def own_figures(self, drawings: Sequence[Drawing]) -> Figures:
        """The benchmark's own score of all drawings."""

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """The own figures and CLIPScore, of the drawings named by `predictions` below `folder`."""
        drawings = find_drawings(items, predictions, folder)
        own, clip = self.own_figures(drawings), clip_figures(drawings)
        return Score(
            headline=self.headline,
            metrics={**own.metrics, **clip.metrics},
            notes=(*own.notes, *clip.notes),
            correct=own.correct or clip.correct,
        )


def find_drawings(items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> list[Drawing]:
    """All drawings in the order of the items. UserError for one that is not there."""
    found = []
    for item in items:
        names = predictions[item.id]
        for name in [names] if isinstance(names, str) else names:
            path = folder / name
            if not path.is_file():
                raise UserError(f"the drawing {name} of {item.id} is missing in {folder}; predict it again")
            found.append(Drawing(item, path))
    return found


def batches(drawings: Sequence[Drawing], size: int = _BATCH) -> Iterator[Sequence[Drawing]]:
    """The drawings, a few at a time."""
    for start in range(0, len(drawings), size):
        yield drawings[start : start + size]


def clip_figures(drawings: Sequence[Drawing]) -> Figures:
    """The mean CLIPScore of the drawings with their prompts; None without a local CLIP."""
    from ..metrics.clip_score import clip_scores

    clip = local_clip()
    if clip is None:
        return Figures({"clip_score": None}, [f"clip_score is null: {missing('clip')}"])
    values: dict[str, list[float]] = {}
    for batch in batches(drawings):
        scores = clip_scores(clip, [d.open() for d in batch], [d.item.prompt for d in batch])
        for drawing, score in zip(batch, scores, strict=True):
            values.setdefault(drawing.item.id, []).append(score)
    means = item_means(values)
    every = [score for scores in values.values() for score in scores]
    return Figures({"clip_score": mean(every)}, [f"clip_score by {clip.name}"], means)


def item_means(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The mean of each item's values."""
    return {name: sum(found) / len(found) for name, found in values.items()}


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None
