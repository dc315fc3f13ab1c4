"""Image generation tasks: finding the generated images, CLIPScore, scores of items.

Images are generated once; every scorer whose model is given reads the same files.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from ...common.errors import UserError
from ...common.images.reading import load_image
from ..judges.protocols import Clip, Judges, missing
from ..scorers.averages import mean
from .score import Graded, Score, null_score
from .task import Item, ScoringContext, Task

_BATCH = 16


@dataclass(frozen=True)
class GeneratedImage:
    """One image generated for an item."""

    item: Item
    path: Path

    def open(self) -> Image.Image:
        """The image as RGB."""
        return load_image(self.path)


class ImageTask(Task):
    """A task of kind "image": its own metrics, and CLIPScore where a CLIP is given."""

    kind: ClassVar[str] = "image"
    generation: ClassVar[Mapping[str, Any]] = {}

    def own_score(self, images: Sequence[GeneratedImage], judges: Judges) -> Score:
        """The score by the rule of the task; by default it has CLIPScore only."""
        return Score("clip_score", {})

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        """`own_score` and CLIPScore of the images in `context.folder` that `predictions` name."""
        images = find_images(items, predictions, context.folder)
        own, clip = self.own_score(images, context.judges), clip_score(images, context.judges.clip())
        return Score(
            headline=own.headline,
            metrics={**own.metrics, **clip.metrics},
            notes=(*own.notes, *clip.notes),
            items=own.items or clip.items,
        )


def find_images(items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> list[GeneratedImage]:
    """All generated images in the order of the items. UserError for a missing one."""
    found = []
    for item in items:
        names = predictions[item.id]
        for name in [names] if isinstance(names, str) else names:
            path = folder / name
            if not path.is_file():
                raise UserError(f"the image {name} of {item.id} is missing in {folder}; predict it again")
            found.append(GeneratedImage(item, path))
    return found


def clip_score(images: Sequence[GeneratedImage], clip: Clip | None) -> Score:
    """The mean CLIPScore of the images with their prompts; None without a CLIP."""
    from ..metrics.clip_score import clip_scores  # here, because it imports torch, which takes seconds

    if clip is None:
        return null_score("clip_score", missing("clip"))
    graded: list[tuple[GeneratedImage, Graded]] = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        scores = clip_scores(clip, [image.open() for image in batch], [image.item.prompt for image in batch])
        graded += [(image, Graded(None, score)) for image, score in zip(batch, scores, strict=True)]
    average = mean(one.score or 0.0 for _, one in graded)
    notes = (f"clip_score by {clip.name}",)
    return Score("clip_score", {"clip_score": average}, notes=notes, items=item_means(graded))


def item_means(graded: Iterable[tuple[GeneratedImage, Graded]]) -> dict[str, Graded]:
    """For each item the mean score of its images, and the list of what was parsed from them."""
    by_item: dict[str, list[Graded]] = {}
    for image, one in graded:
        by_item.setdefault(image.item.id, []).append(one)
    means = {}
    for key, found in by_item.items():
        parsed = [one.parsed for one in found]
        has_parsed = any(value is not None for value in parsed)
        means[key] = Graded(parsed if has_parsed else None, mean(one.score or 0.0 for one in found))
    return means
