"""MJHQ-30K (arXiv 2402.17245): FID of 30,000 drawings against the set's own images, also by category.

The published figures are by clean-fid, which resizes by another filter; ours is torch-fidelity's, under its
name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ...common.errors import UserError
from ...common.images import load_image
from ...common.json_files import read_json
from ..benchmark import Item
from ..drawings import Drawing, DrawingBenchmark, Figures
from ..local_models import local_inception, missing
from ..metrics.fid import FeatureExtractor, FeatureStatistics, frechet_distance
from ..registry import register

_NAME = "fid-torch-fidelity"
_BATCH = 32


@register
class Mjhq30k(DrawingBenchmark):
    """The official prompts; FID where the images and Inception's weights are at hand."""

    name: ClassVar[str] = "mjhq30k"
    summary: ClassVar[str] = "FID of drawings against 30,000 images of high quality"
    splits = {"test": 30000}
    source: ClassVar[str] = (
        "huggingface.co/datasets/playgroundai/MJHQ-30K: meta_data.json, mjhq30k_imgs unpacked"
    )
    headline: ClassVar[str] = _NAME

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "meta_data.json")
        images = path.parent / "mjhq30k_imgs"
        items = []
        try:
            for name, row in read_json(path).items():
                reference = images / row["category"] / f"{name}.jpg"
                target = {"category": row["category"], "reference": str(reference)}
                items.append(Item(name, row["prompt"], target=target))
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no meta_data.json of MJHQ-30K ({error!r})") from error
        return items

    def own_figures(self, drawings: Sequence[Drawing]) -> Figures:
        extractor = local_inception()
        lost = [path for d in drawings if not (path := Path(d.item.target["reference"])).is_file()]
        if extractor is None or lost:
            reason = (
                missing("inception") if extractor is None else f"{lost[0]} is missing ({len(lost)} in all)"
            )
            return Figures({_NAME: None}, [f"{_NAME} is null: {reason}"])
        return fid_by_category(drawings, extractor)


def fid_by_category(drawings: Sequence[Drawing], extractor: FeatureExtractor) -> Figures:
    """FID of all drawings, and of each category; one category's statistics are held at a time."""
    metrics: dict[str, float | None] = {}
    notes = [f"{_NAME}: features of torch-fidelity; the published table is by clean-fid"]
    all_sides = (FeatureStatistics(), FeatureStatistics())
    for category in sorted({drawing.item.target["category"] for drawing in drawings}):
        own = [drawing for drawing in drawings if drawing.item.target["category"] == category]
        references = list(dict.fromkeys(Path(drawing.item.target["reference"]) for drawing in own))
        sides = (statistics_of(references, extractor), statistics_of([d.path for d in own], extractor))
        for whole, side in zip(all_sides, sides, strict=True):
            whole.merge(side)
        few = min(side.count for side in sides) < 2
        metrics[f"{_NAME}/{category}"] = None if few else frechet_distance(*sides)
        if few:
            notes.append(f"{_NAME}/{category} is null: FID needs at least two images")
    return Figures({_NAME: frechet_distance(*all_sides), **metrics}, notes)


def statistics_of(paths: Sequence[Path], extractor: FeatureExtractor) -> FeatureStatistics:
    """Statistics of image files, in runs of equal size."""
    statistics = FeatureStatistics()
    for start in range(0, len(paths), _BATCH):
        by_size: dict[tuple[int, int], list[Tensor]] = {}
        for path in paths[start : start + _BATCH]:
            image = load_image(path)
            array = torch.from_numpy(np.array(image)).permute(2, 0, 1)
            by_size.setdefault(image.size, []).append(array)
        for images in by_size.values():
            statistics.update(extractor(torch.stack(images)))
    return statistics
