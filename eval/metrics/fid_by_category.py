"""FID of drawings against reference images, of all and of each category."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...common.images.reading import load_image
from ..harness.generated_images import Drawing, Figures
from .fid import FeatureExtractor, FeatureStatistics, frechet_distance

_BATCH = 32


def fid_by_category(metric: str, drawings: Sequence[Drawing], extractor: FeatureExtractor) -> Figures:
    """FID of all drawings as `metric`, and of each category as `metric`/category.

    One category's statistics are held at a time.
    """
    metrics: dict[str, float | None] = {}
    notes = [f"{metric}: features of torch-fidelity; the published table is by clean-fid"]
    all_sides = (FeatureStatistics(), FeatureStatistics())
    for category in sorted({drawing.item.target["category"] for drawing in drawings}):
        own = [drawing for drawing in drawings if drawing.item.target["category"] == category]
        references = list(dict.fromkeys(Path(drawing.item.target["reference"]) for drawing in own))
        sides = (statistics_of(references, extractor), statistics_of([d.path for d in own], extractor))
        for whole, side in zip(all_sides, sides, strict=True):
            whole.merge(side)
        few = min(side.count for side in sides) < 2
        metrics[f"{metric}/{category}"] = None if few else frechet_distance(*sides)
        if few:
            notes.append(f"{metric}/{category} is null: FID needs at least two images")
    return Figures({metric: frechet_distance(*all_sides), **metrics}, notes)


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
