"""GenEval's rule (arXiv 2310.11513): whether detected objects fit a prompt's metadata.

The rule is that of the official `evaluate_images.py` with its default settings, for any object detector and
any model that names colours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
# Defaults of the official script.
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """A detected object.

    Its box is (left, top, right, bottom) in pixels, its mask, where the detector gives one, (H, W) of bool.
    """

    name: str
    score: float
    box: Box
    mask: np.ndarray | None = None


#: detections of one class, name of the class -> the colour of each
ColorNamer = Callable[[Sequence[Detection], str], Sequence[str]]


def kept_objects(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The detections above the threshold (0.3; 0.9 for the tag "counting"), at most 16 of a class.

    By class, the most confident first.
    """
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept: dict[str, list[Detection]] = {}
    for found in sorted(detections, key=lambda detection: -detection.score):
        if found.score > least and len(kept.get(found.name, ())) < MAX_OBJECTS:
            kept.setdefault(found.name, []).append(found)
    return kept


def relative_position(one: Box, other: Box) -> set[str]:
    """The position of `one` relative to `other`: none to two of "left of", "right of", "above", "below".

    The offset of the centres counts only as far as it exceeds a tenth of both sizes.
    """
    corners = np.array([one, other], dtype=np.float64).reshape(2, 2, 2)
    offset = np.subtract(*corners.mean(axis=1))
    sizes = np.abs(corners[:, 1] - corners[:, 0]).sum(axis=0)
    beyond = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0) * np.sign(offset)
    if np.all(np.abs(beyond) < 1e-3):
        return set()
    x, y = beyond / np.linalg.norm(offset)
    named = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in named.items() if holds}


def is_correct(
    objects: Mapping[str, Sequence[Detection]], metadata: Mapping[str, Any], name_colors: ColorNamer | None
) -> bool:
    """Whether one image fulfils its prompt's metadata.

    Args:
        objects: from `kept_objects`; the most confident ones of a class are used, as many as demanded.
        metadata: a line of the official evaluation_metadata.jsonl.
        name_colors: needed for demands of a colour.
    """
    correct = True  # later demands refer to objects of earlier ones, so that all are checked
    groups: list[Sequence[Detection] | None] = []
    for demand in metadata.get("include", ()):
        count, name = demand["count"], demand["class"]
        found = list(objects.get(name, ()))[:count]
        matched = len(found) == count
        if matched and "color" in demand:
            assert name_colors is not None
            matched = list(name_colors(found, name)).count(demand["color"]) >= count
        if matched and "position" in demand:
            relation, target = demand["position"]
            others = groups[target]
            matched = others is not None and all(
                relation in relative_position(one.box, other.box) for one in found for other in others
            )
        correct = correct and matched
        groups.append(found if matched else None)
    excluded = metadata.get("exclude", ())
    too_many = (len(objects.get(demand["class"], ())) >= demand["count"] for demand in excluded)
    return correct and not any(too_many)


def summary(correct: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """The share of correct images for each tag, and "overall": the mean of these shares."""
    shares = {tag: sum(found) / len(found) for tag, found in correct.items() if found}
    return {**shares, "overall": sum(shares.values()) / len(shares)}
