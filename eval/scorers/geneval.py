"""GenEval's rule (arXiv 2310.11513): from detected objects and a prompt's metadata to right or wrong.

The rule is that of the official `evaluate_images.py` with its default settings; only what detects objects and
names their colours is handed in.
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
    """An object found: its name, its confidence, its box (left, top, right, bottom) in pixels and, where the
    detector gives one, its mask (H, W) of bool.
    """

    name: str
    score: float
    box: Box
    mask: np.ndarray | None = None


#: detections of one class -> the colour of each
ColorNamer = Callable[[Sequence[Detection], str], Sequence[str]]


def kept_objects(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The detections that count, by class, the most confident first.

    Above 0.3, or above 0.9 where objects are counted, and at most 16 of a class.
    """
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    kept: dict[str, list[Detection]] = {}
    for found in sorted(detections, key=lambda detection: -detection.score):
        if found.score > least and len(kept.get(found.name, ())) < MAX_OBJECTS:
            kept.setdefault(found.name, []).append(found)
    return kept


def relative_position(one: Box, other: Box) -> set[str]:
    """Where `one` is as seen from `other`: of "left of", "right of", "above", "below", none or two.

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
    """Whether one image shows what its prompt's metadata demands.

    objects: from `kept_objects`; of a class only the most confident ones are used, as many as the prompt asks
    for. metadata: a line of the official evaluation_metadata.jsonl. name_colors: for demands of a colour.

    Every demand is checked, also after one failed, because later ones refer to the objects that earlier ones
    matched.
    """
    correct = True
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
            matched = _all_related(found, groups[target], relation)
        correct = correct and matched
        groups.append(found if matched else None)
    too_many = (
        len(objects.get(demand["class"], ())) >= demand["count"] for demand in metadata.get("exclude", ())
    )
    return correct and not any(too_many)


def _all_related(found: Sequence[Detection], target: Sequence[Detection] | None, relation: str) -> bool:
    if target is None:
        return False
    return all(relation in relative_position(one.box, other.box) for one in found for other in target)


def summary(correct: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """Share of right images for each tag, and "overall": the mean of the tags' shares, not of the images."""
    shares = {tag: sum(found) / len(found) for tag, found in correct.items() if found}
    return {**shares, "overall": sum(shares.values()) / len(shares)}
