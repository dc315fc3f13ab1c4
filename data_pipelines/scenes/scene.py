"""Procedural scenes: a few simple shapes on a plain background.

Scenes are rendered at any size; captions, questions, checks and dense patch labels follow from them exactly,
without annotation. Coordinates are fractions of the image side, with (0, 0) the upper left corner and y
growing downwards. Seeds at or above `HELD_OUT_SEED` are for evaluation only, never for training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from ...common.errors import UserError
from ...common.values import finite_number

T = TypeVar("T")

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "star", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 34, 34),
    "green": (20, 150, 60),
    "blue": (36, 84, 224),
    "yellow": (252, 216, 16),
    "orange": (246, 128, 16),
    "purple": (142, 48, 184),
    "black": (16, 16, 16),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (255, 255, 255), "light grey": (212, 212, 212)}
RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")
OPPOSITE: dict[str, str] = {"left": "right", "right": "left", "above": "below", "below": "above"}

HELD_OUT_SEED = 10**9
MAX_OBJECTS = 4
_MOST_OBJECTS = 100  # of a scene that is read from a file
#: Number of classes of `patch_classes`: the background and every pair of a colour and a shape.
NUM_PATCH_CLASSES = 1 + len(COLOURS) * len(SHAPES)

# Fractions of the image side. Smaller objects do not survive a coarse visual tokenizer.
_RADIUS_RANGES = {1: (0.16, 0.25), 2: (0.14, 0.20), 3: (0.125, 0.16), 4: (0.125, 0.16)}
_GAP = 0.04
_MARGIN = 0.02
_CLEAR_DIFFERENCE = 0.2
#: Side of an object laid out on a grid, in cells.
_CELLS = 3
#: Cells per side that four objects with a free cell between them need.
MIN_GRID = 2 * (_CELLS + 1)
_SUPERSAMPLING = 4
_COLOUR_NAMES = tuple(COLOURS)


@dataclass(frozen=True)
class SceneObject:
    """One shape; it fills at most the square of half-side `radius` around (x, y)."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def patch_class(self) -> int:
        """Class of a patch that this object covers, in [1, NUM_PATCH_CLASSES)."""
        return 1 + _COLOUR_NAMES.index(self.colour) * len(SHAPES) + SHAPES.index(self.shape)


@dataclass(frozen=True)
class Scene:
    """Objects that neither touch nor leave the image, on one background."""

    objects: tuple[SceneObject, ...]
    background: str = "white"

    def to_dict(self) -> dict[str, Any]:
        return {"objects": [asdict(item) for item in self.objects], "background": self.background}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scene:
        """Inverse of `to_dict`.

        Raises UserError for an unknown shape, colour or background, too many objects or one off the image.
        """
        if (count := len(data["objects"])) > _MOST_OBJECTS:
            raise UserError(f"A scene of {count} objects: at most {_MOST_OBJECTS} are allowed.")
        objects = tuple(SceneObject(**item) for item in data["objects"])
        for item in objects:
            for name in ("x", "y", "radius"):
                finite_number(getattr(item, name), f"A scene object's {name}", least=0.0, most=1.0)
            if item.shape not in SHAPES or item.colour not in COLOURS:
                raise UserError(
                    f"Unknown scene object '{item.colour} {item.shape}': shapes are {', '.join(SHAPES)}; "
                    f"colours are {', '.join(COLOURS)}."
                )
        if (background := data["background"]) not in BACKGROUNDS:
            raise UserError(f"Unknown background '{background}': allowed are {', '.join(BACKGROUNDS)}.")
        return cls(objects, background)


@dataclass(frozen=True)
class Placement:
    """Centre and radius of an object before it has a shape and a colour."""

    x: float
    y: float
    radius: float


# --- random scenes ----------------------------------------


def place_objects(rng: np.random.Generator, count: int, grid: int | None = None) -> list[Placement]:
    """`count` (1–4) placements whose surrounding squares keep a gap between them and to the border.

    With `grid` (8 or more) every object fills 3 × 3 cells of a (grid, grid) raster, with a free cell between
    objects, so that the patches of an object look the same at every position.
    """
    if not 1 <= count <= MAX_OBJECTS:
        raise UserError(f"A scene holds 1 to {MAX_OBJECTS} objects, got {count}.")
    if grid is not None:
        return _place_on_grid(rng, count, grid)
    low, high = _RADIUS_RANGES[count]
    for _ in range(20):
        placements: list[Placement] = []
        for _ in range(40):
            radius, across, down = rng.random(3).tolist()
            candidate = _place(low + (high - low) * radius, across, down)
            if all(_apart(candidate, other) for other in placements):
                placements.append(candidate)
                if len(placements) == count:
                    return placements
    return _place_in_quadrants(rng, count, low)


def _place(radius: float, across: float, down: float) -> Placement:
    room = 1.0 - 2.0 * (radius + _MARGIN)
    x, y = (round(radius + _MARGIN + room * share, 4) for share in (across, down))
    return Placement(x, y, round(radius, 4))


def _apart(a: Placement, b: Placement) -> bool:
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + _GAP


def _place_in_quadrants(rng: np.random.Generator, count: int, radius: float) -> list[Placement]:
    """Always succeeds: one object of the smallest size in each of `count` quadrants."""
    jitter = 0.25 - radius - max(_MARGIN, _GAP / 2)
    placements = []
    for quadrant in rng.permutation(4)[:count].tolist():
        dx, dy = rng.uniform(-jitter, jitter, 2).tolist()
        x, y = 0.25 + 0.5 * (quadrant % 2) + dx, 0.25 + 0.5 * (quadrant // 2) + dy
        placements.append(Placement(round(x, 4), round(y, 4), radius))
    return placements


def _place_on_grid(rng: np.random.Generator, count: int, grid: int) -> list[Placement]:
    """Positions of 3 × 3 cells, resampled until they are apart; three or more are in separate quadrants."""
    if grid < MIN_GRID:
        raise UserError(f"A grid for scenes has at least {MIN_GRID} cells a side, got {grid}.")
    half = grid // 2
    while True:
        if count > 2:
            quadrants = rng.permutation(4)[:count]
            low, room = np.stack([quadrants % 2, quadrants // 2], axis=1) * half, half - _CELLS
        else:
            low, room = np.zeros((count, 2), dtype=np.int64), grid - _CELLS
        corners = low + rng.integers(0, room + 1, (count, 2))
        apart = np.abs(corners[:, None] - corners[None]).max(axis=-1) > _CELLS
        if apart[np.triu_indices(count, 1)].all():
            break
    centres = (corners + _CELLS / 2) / grid
    return [Placement(x, y, _CELLS / 2 / grid) for x, y in centres.tolist()]


def random_background(rng: np.random.Generator) -> str:
    """White four times out of five, else light grey."""
    return "white" if rng.random() < 0.8 else "light grey"


def choose(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of `options`, uniformly (much faster than `rng.choice` and it keeps Python types)."""
    return options[int(rng.random() * len(options))]


def choose_other(rng: np.random.Generator, options: Iterable[T], excluded: T) -> T:
    """One of `options` that is not `excluded`, uniformly."""
    chosen: T = choose(rng, [option for option in options if option != excluded])
    return chosen


def shuffled(rng: np.random.Generator, items: Iterable[T]) -> list[T]:
    """The items in random order."""
    items = list(items)
    return [items[i] for i in rng.permutation(len(items)).tolist()]


def random_scene(
    rng: np.random.Generator,
    num_objects: int | None = None,
    repetition: float = 0.3,
    background: str | None = None,
) -> Scene:
    """A scene of `num_objects` (default: one to four, at random).

    With probability `repetition` an object repeats the shape, the colour or both of an earlier one, so that
    counts exceed one and neither colour nor shape determines the other.
    """
    count = num_objects if num_objects is not None else 1 + int(rng.choice(4, p=(0.22, 0.26, 0.26, 0.26)))
    objects: list[SceneObject] = []
    for place in place_objects(rng, count):
        shape, colour = choose(rng, SHAPES), choose(rng, _COLOUR_NAMES)
        if objects and rng.random() < repetition:
            model = choose(rng, objects)
            repeated = choose(rng, ("shape", "colour", "both"))
            shape = model.shape if repeated != "colour" else shape
            colour = model.colour if repeated != "shape" else colour
        objects.append(SceneObject(shape, colour, place.x, place.y, place.radius))
    return Scene(tuple(objects), background or random_background(rng))


# --- geometry ----------------------------------------


def relation(a: SceneObject, b: SceneObject) -> str | None:
    """Where `a` is relative to `b`: one of `RELATIONS`, or None when that is not clear.

    Clear means at least 0.2 apart along one axis, and less along the other one.
    """
    dx, dy = a.x - b.x, a.y - b.y
    if max(abs(dx), abs(dy)) < _CLEAR_DIFFERENCE or abs(dx) == abs(dy):
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _star_corner(number: int) -> tuple[float, float]:
    length, angle = 0.45 if number % 2 else 1.05, math.pi * number / 5
    return length * math.sin(angle), 0.08 - length * math.cos(angle)


_ARM = 0.33
#: Corners of polygons inside the square [-1, 1]²; the circle is an ellipse instead.
_OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)),
    "triangle": ((0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)),
    "diamond": ((0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)),
    "star": tuple(map(_star_corner, range(10))),
    "cross": (
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ),
}  # fmt: skip


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: int | tuple[int, int, int]
) -> None:
    """Fill one shape on a canvas; centre and radius in pixels of that canvas, without antialiasing."""
    if shape not in SHAPES:
        raise UserError(f"Unknown shape '{shape}': allowed are {', '.join(SHAPES)}.")
    # PIL fills every pixel that an outline touches, half a pixel too much on all sides.
    radius -= 0.5
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        draw.polygon([(x + radius * px, y + radius * py) for px, py in _OUTLINES[shape]], fill=fill)


def render(scene: Scene, size: int = 64) -> Image.Image:
    """The scene as an RGB image of `size` × `size` pixels, antialiased by 4× supersampling."""
    side = size * _SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(canvas)
    for item in scene.objects:
        colour = COLOURS[item.colour]
        draw_shape(draw, item.shape, item.x * side, item.y * side, item.radius * side, colour)
    return canvas.reduce(_SUPERSAMPLING)


def coverage(item: SceneObject, grid: int, samples: int = 16) -> np.ndarray:
    """The share of each cell of a (grid, grid) raster that `item` covers, float32 in [0, 1]."""
    side = grid * samples
    canvas = Image.new("L", (side, side), 0)
    draw_shape(ImageDraw.Draw(canvas), item.shape, item.x * side, item.y * side, item.radius * side, 1)
    mask = np.asarray(canvas, dtype=np.float32)
    return mask.reshape(grid, samples, grid, samples).mean(axis=(1, 3))


def patch_classes(scene: Scene, grid: int) -> np.ndarray:
    """Dense labels of a (grid, grid) raster of patches, int64 in [0, NUM_PATCH_CLASSES).

    0 is the background; else 1 + colour · number of shapes + shape of the object that covers most of the
    patch, if it covers at least a quarter of it.
    """
    labels = np.zeros((grid, grid), dtype=np.int64)
    most = np.full((grid, grid), 0.25, dtype=np.float32)
    for item in scene.objects:
        share = coverage(item, grid)
        covers = share >= most
        labels[covers] = item.patch_class
        most[covers] = share[covers]
    return labels
