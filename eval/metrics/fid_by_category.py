"""FID of generated images against reference images, over all images and by category."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...common.images.reading import load_image
from ..harness.generated_images import GeneratedImage
from ..harness.score import Score
from .fid import FeatureExtractor, FeatureStatistics, frechet_distance

_BATCH = 32


def fid_by_category(metric: str, images: Sequence[GeneratedImage], extractor: FeatureExtractor) -> Score:
    """FID of all images as `metric`, and of each category as `metric`/category."""
    metrics: dict[str, float | None] = {}
    notes = [f"{metric}: features of torch-fidelity; the published table is by clean-fid"]
    num_features = extractor(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape[1]
    totals = FeatureStatistics(num_features), FeatureStatistics(num_features)
    for category in sorted({image.item.target["category"] for image in images}):
        own = [image for image in images if image.item.target["category"] == category]
        references = list(dict.fromkeys(Path(image.item.target["reference"]) for image in own))
        sides = FeatureStatistics(num_features), FeatureStatistics(num_features)
        for paths, side, total in zip((references, [i.path for i in own]), sides, totals, strict=True):
            add_images(paths, extractor, (side, total))
        few = min(side.count for side in sides) < 2
        metrics[f"{metric}/{category}"] = None if few else frechet_distance(*sides)
        if few:
            notes.append(f"{metric}/{category} is null: FID needs at least two images")
    return Score(metric, {metric: frechet_distance(*totals), **metrics}, notes=tuple(notes))


def add_images(
    paths: Sequence[Path], extractor: FeatureExtractor, statistics: Sequence[FeatureStatistics]
) -> None:
    """Add image files to all the statistics, in batches of equal size."""
    for start in range(0, len(paths), _BATCH):
        by_size: dict[tuple[int, int], list[torch.Tensor]] = {}
        for image in map(load_image, paths[start : start + _BATCH]):
            by_size.setdefault(image.size, []).append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        for images in by_size.values():
            features = extractor(torch.stack(images))
            for one in statistics:
                one.update(features)
