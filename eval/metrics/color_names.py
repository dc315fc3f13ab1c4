"""Which colour an object in a drawing has, by GenEval's rule: CLIP compares its cut-out with prompts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..scorers.geneval import COLORS, Detection
from .clip_score import LocalClip

_BACKGROUND = "#999"  # what the official script puts around an object before its colour is named


class ColorNames:
    """Colours of objects by CLIP: cut out on grey, compared with GenEval's three prompts of each colour."""

    def __init__(self, clip: LocalClip | None, image: Image.Image) -> None:
        self._clip, self._image = clip, image

    def __call__(self, found: Sequence[Detection], name: str) -> list[str]:
        assert self._clip is not None  # prompts of colours are left out without one
        features = self._clip.encode_images([self._cut(detection) for detection in found])
        nearest = (features @ _color_classifier(self._clip, name)).argmax(dim=1)
        return [COLORS[number] for number in nearest.tolist()]

    def _cut(self, detection: Detection) -> Image.Image:
        image = self._image
        if detection.mask is not None:
            grey = Image.new("RGB", image.size, _BACKGROUND)
            image = Image.composite(image, grey, Image.fromarray(detection.mask))
        left, top, right, bottom = (round(edge) for edge in detection.box)
        return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


@cache
def _color_classifier(clip: LocalClip, name: str) -> Tensor:
    """Embeddings (E, colours), each the normalised mean of its prompts."""
    forms = (
        "a photo of a {color} {name}",
        "a photo of a {color}-colored {name}",
        "a photo of a {color} object",
    )
    prompts = [[form.format(color=color, name=name) for form in forms] for color in COLORS]
    means = torch.stack([clip.encode_texts(three).mean(dim=0) for three in prompts])
    return F.normalize(means, dim=-1).T
