"""Check images of scenes by plain image processing: which objects does an image show, do they fit a prompt?

It works on clean renders, reconstructions and generated images with soft edges, of 32 pixels or more: the
background is the most common colour; a pixel belongs to an object when it is at least half way from the
background to a palette colour; connected pixels make an object; its shape is the one whose template, at the
object's centre and area, overlaps best. The palette is `scene.COLOURS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ...common.errors import UserError
from .language import ImageSpec, plural
from .scene import COLOURS, SHAPES, draw_shape

UNCLEAR = "unclear"

_MAX_SIDE = 128
_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
_COLOUR_NAMES = tuple(COLOURS)
# Share of the image below which an object is a speck; the smallest object of a scene covers 0.0135.
_SPECK = 0.005
# A palette colour is at least 88 (RGB distance) from the next one.
_COLOUR_TOLERANCE = 90.0
_MIN_OVERLAP = 0.7
# Blur of the templates (standard deviation as a share of the image side): a soft star is not a circle.
_SOFTNESS = (0.0, 0.012, 0.024)
_DOMINANT = 0.75
# The least distance of two objects along the axis of their relation.
_RELATION_DISTANCE = 0.1


@dataclass(frozen=True)
class FoundObject:
    """An object found in an image, in the units of `SceneObject`; colour and shape may be "unclear".

    `overlap` is the intersection over union with the template of `shape`.
    """

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    overlap: float


@dataclass(frozen=True)
class CheckResult:
    """The verdict on one image. `reason` explains why it is incorrect; it is empty for a correct one.

    colour_correct, shape_correct and count_correct compare found and wanted objects in one respect each.
    """

    correct: bool
    colour_correct: bool
    shape_correct: bool
    count_correct: bool
    found: tuple[FoundObject, ...]
    reason: str


# --- finding ----------------------------------------


def find_objects(image: Image.Image) -> list[FoundObject]:
    """The objects of an image of any size, from left to right. Specks are ignored."""
    pixels = _pixels(image)
    background = _background(pixels)
    share, nearest = _colour_shares(pixels, background)
    inside = share >= 0.5
    labels, count = ndimage.label(inside)
    found = []
    for part in _parts(labels, count, nearest, inside.size * _SPECK):
        colour, strength = _part_colour(pixels, share, part, background)
        if strength is not None:
            found.append(_measure(colour, _soft_mask(strength, part, inside), inside.shape))
    return sorted(found, key=lambda item: (item.x, item.y))


def _pixels(image: Image.Image) -> np.ndarray:
    """RGB as float32 (H, W, 3), the longer side at most 128 pixels."""
    rgb = image.convert("RGB")
    if min(rgb.size) < 16:
        raise UserError(f"An image to check needs at least 16 pixels a side, got {rgb.width} × {rgb.height}.")
    if max(rgb.size) > _MAX_SIDE:
        scale = _MAX_SIDE / max(rgb.size)
        rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.BOX)
    return np.asarray(rgb, dtype=np.float32)


def _background(pixels: np.ndarray) -> np.ndarray:
    """Median of the pixels near the most common colour, (3,)."""
    flat = pixels.reshape(-1, 3)
    codes = (flat // 32).astype(np.int32) @ (64, 8, 1)
    commonest = flat[codes == np.bincount(codes).argmax()].mean(axis=0)
    near = np.linalg.norm(flat - commonest, axis=1) < 32
    return np.median(flat[near], axis=0)


def _colour_shares(pixels: np.ndarray, background: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel is from the background to its nearest palette colour, in [0, 1], and that colour.

    The distance is to the straight line from the background to the colour: soft edges are mixtures of both.
    """
    lines = _PALETTE - background
    lengths = np.maximum((lines**2).sum(axis=1), 1.0)
    towards = np.clip((pixels - background) @ lines.T / lengths, 0.0, 1.0)
    distance = np.linalg.norm((pixels - background)[..., None, :] - towards[..., None] * lines, axis=-1)
    nearest = distance.argmin(axis=-1)
    share = np.take_along_axis(towards, nearest[..., None], axis=-1)[..., 0]
    return share, nearest


def _parts(labels: np.ndarray, count: int, nearest: np.ndarray, speck: float) -> list[np.ndarray]:
    """Boolean masks of the objects: connected pixels, divided by colour where no colour dominates."""
    parts = []
    for label in range(1, count + 1):
        component = labels == label
        area = int(component.sum())
        if area < speck:
            continue
        colours = np.bincount(nearest[component], minlength=len(_PALETTE))
        if colours.max() >= _DOMINANT * area:
            parts.append(component)
            continue
        for colour in np.flatnonzero(colours >= speck):
            pieces, number = ndimage.label(component & (nearest == colour))
            masks = [pieces == piece for piece in range(1, number + 1)]
            parts.extend(mask for mask in masks if mask.sum() >= speck)
    return parts


def _part_colour(
    pixels: np.ndarray, share: np.ndarray, part: np.ndarray, background: np.ndarray
) -> tuple[str, np.ndarray | None]:
    """Colour of an object's core, and the share of that colour in every pixel; None for low contrast."""
    core = part & (share >= min(0.9, float(np.quantile(share[part], 0.6))))
    median = np.median(pixels[core], axis=0)
    line = median - background
    contrast = float((line**2).sum())
    if contrast < 60.0**2:
        return UNCLEAR, None
    strength = np.clip((pixels - background) @ line / contrast, 0.0, 1.0)
    distances = np.linalg.norm(_PALETTE - median, axis=1)
    colour = _COLOUR_NAMES[int(distances.argmin())] if distances.min() <= _COLOUR_TOLERANCE else UNCLEAR
    return colour, strength


def _soft_mask(strength: np.ndarray, part: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Coverage of each pixel by one object: its pixels and their soft edge, without other objects."""
    filled = ndimage.binary_fill_holes(part)
    edge = ndimage.binary_dilation(filled, iterations=2) & ~inside
    return np.where(part, np.maximum(strength, 0.5), np.where(filled | edge, strength, 0.0))


def _measure(colour: str, mask: np.ndarray, size: tuple[int, int]) -> FoundObject:
    """Shape, centre and radius of one object by its best template."""
    side = float(max(size))
    rows, columns = np.nonzero(mask > 0)
    top, left = max(rows.min() - 1, 0), max(columns.min() - 1, 0)
    crop = mask[top : rows.max() + 2, left : columns.max() + 2]
    best = FoundObject(colour, UNCLEAR, 0.0, 0.0, 0.0, 0.0)
    area, centre_x, centre_y = _moments(crop)
    for shape in SHAPES:
        unit_area, unit_x, unit_y = _unit_template(shape)
        radius = (area / unit_area) ** 0.5
        x, y = centre_x - unit_x * radius, centre_y - unit_y * radius
        sharp = _template(shape, x, y, radius, crop.shape)
        for softness in _SOFTNESS:
            template = ndimage.gaussian_filter(sharp, softness * side) if softness else sharp
            overlap = float(np.minimum(crop, template).sum() / np.maximum(crop, template).sum())
            if overlap > best.overlap:
                best = FoundObject(colour, shape, (left + x) / side, (top + y) / side, radius / side, overlap)
    return best if best.overlap >= _MIN_OVERLAP else replace(best, shape=UNCLEAR)


def _moments(mask: np.ndarray, origin: float = 0.0) -> tuple[float, float, float]:
    """Area and centroid (x, y), relative to (origin, origin), of a mask in pixels."""
    area = float(mask.sum())
    y_grid, x_grid = np.indices(mask.shape) + 0.5 - origin
    return area, float((x_grid * mask).sum() / area), float((y_grid * mask).sum() / area)


@cache
def _unit_template(shape: str) -> tuple[float, float, float]:
    """Area and centroid (x, y) of a shape of radius 1 around (0, 0)."""
    scale, side = 100.0, 240
    area, x, y = _moments(_template(shape, side / 2, side / 2, scale, (side, side)), side / 2)
    return area / scale**2, x / scale, y / scale


def _template(shape: str, x: float, y: float, radius: float, size: tuple[int, ...]) -> np.ndarray:
    """Coverage in [0, 1] of an (H, W) raster by a shape; centre and radius in pixels."""
    fine = 4
    canvas = Image.new("L", (size[1] * fine, size[0] * fine), 0)
    draw_shape(ImageDraw.Draw(canvas), shape, x * fine, y * fine, radius * fine, 255)
    return np.asarray(canvas.reduce(fine), dtype=np.float32) / 255.0


# --- judging ----------------------------------------


def check(spec: ImageSpec | Mapping[str, Any], image: Image.Image) -> CheckResult:
    """Check `image` against `spec`.

    All skills but "colors" require exactly the objects of the specification, "position" their relation too;
    "colors" requires the shape, and the colour for every object of that shape.
    """
    if not isinstance(spec, ImageSpec):
        spec = ImageSpec.from_dict(spec)
    found = tuple(find_objects(image))
    wanted = Counter({(item.colour, item.shape): item.count for item in spec.objects})
    seen = Counter((item.colour, item.shape) for item in found)
    reason = _colour_problem(spec, found) if spec.skill == "colors" else _difference(wanted, seen)
    if not reason and spec.relation is not None:
        reason = _relation_problem(spec, found)
    return CheckResult(
        correct=not reason,
        colour_correct=_project(wanted, 0) == _project(seen, 0),
        shape_correct=_project(wanted, 1) == _project(seen, 1),
        count_correct=wanted.total() == seen.total(),
        found=found,
        reason=reason,
    )


def _project(looks: Counter[tuple[str, str]], part: int) -> Counter[str]:
    """Counts by colour (part 0) or by shape (part 1) alone."""
    return Counter(look[part] for look in looks.elements())


def _difference(wanted: Counter[tuple[str, str]], seen: Counter[tuple[str, str]]) -> str:
    if wanted == seen:
        return ""
    missing, extra = _in_words(wanted - seen) or "nothing more", _in_words(seen - wanted) or "nothing"
    return f"expected {missing}, found {extra} instead"


def _colour_problem(spec: ImageSpec, found: tuple[FoundObject, ...]) -> str:
    for item in spec.objects:
        colours = {other.colour for other in found if other.shape == item.shape}
        if not colours:
            return f"no {item.shape} found"
        if colours != {item.colour}:
            return f"the {item.shape} should be {item.colour}, found {', '.join(sorted(colours))}"
    return ""


def _relation_problem(spec: ImageSpec, found: tuple[FoundObject, ...]) -> str:
    first, second = (
        next(f for f in found if (f.colour, f.shape) == (item.colour, item.shape)) for item in spec.objects
    )
    dx, dy = second.x - first.x, second.y - first.y
    distance = {"left": dx, "right": -dx, "above": dy, "below": -dy}[str(spec.relation)]
    if distance >= _RELATION_DISTANCE:
        return ""
    return f"the {first.colour} {first.shape} is not {spec.relation} of the {second.colour} {second.shape}"


def _in_words(looks: Counter[tuple[str, str]]) -> str:
    return ", ".join(f"{n} {c} {s if n == 1 else plural(s)}" for (c, s), n in looks.items())
