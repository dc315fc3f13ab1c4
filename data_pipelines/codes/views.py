"""Additional views of a record's images, each a separate record: random crops and mirror images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ...common.images.reading import load_image
from ...common.values import finite_number, flag, seed_number, whole_number
from ..records import Record, image_part, with_image_parts

#: Crops of one record, at most.
MOST_CROPS = 1000


@dataclass(frozen=True)
class ViewOptions:
    """Which views of a record are tokenized in addition to the record itself.

    Args:
        crops: number of random crops of the images, with ids that end in "-crop1", "-crop2", …
        crop_scale: least fraction of the image's area in a crop, which keeps the aspect ratio.
        flips: add a mirror image of the record and of each crop, with ids that end in "-flip". Only for
            records that stay true when left and right are swapped: no text in images, no "left of" in texts.
        seed: the same seed and id give the same crops.
    """

    crops: int = 0
    crop_scale: float = 0.5
    flips: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        whole_number(self.crops, "--crops", 0, MOST_CROPS)
        finite_number(self.crop_scale, "--crop-scale", above=0.0, most=1.0)
        flag(self.flips, "--flips")
        seed_number(self.seed, "--seed")

    @property
    def copies(self) -> int:
        """Number of records made from one that has images."""
        return (1 + self.crops) * (1 + self.flips)


def views(record: Record, options: ViewOptions) -> Iterator[Record]:
    """The record itself, its crops, then the mirror images of these; a record without images alone.

    Errors:
        UserError for an image that cannot be read.
    """
    if options.copies == 1 or not record.image_parts():
        yield record
        return
    images = [load_image(part["image"]) for part in record.image_parts()]
    versions = [(record.id, images)]
    for number in range(1, options.crops + 1):
        key = f"{options.seed} {number} {record.id}".encode()
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:8], "little"))
        crops = [_crop(image, options.crop_scale, rng) for image in images]
        versions.append((f"{record.id}-crop{number}", crops))
    if options.flips:
        versions += [(f"{name}-flip", [ImageOps.mirror(image) for image in made]) for name, made in versions]
    for name, made in versions:
        parts: list[dict[str, Any]] = [image_part(image) for image in made]
        version = with_image_parts(record, parts)
        yield Record(name, version.messages, version.metadata)


def _crop(image: Image.Image, least: float, rng: np.random.Generator) -> Image.Image:
    side = float(np.sqrt(rng.uniform(least, 1.0)))
    width, height = (max(1, round(length * side)) for length in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))
