"""The colour of an object in an image by GenEval's rule: CLIP compares its cut-out with prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..judges.protocols import Clip
from ..scorers.geneval import COLORS, Detection

_BACKGROUND = "#999"  # around an object, as in the official script


class ColorNames:
    """Colours of objects by CLIP: cut out on grey, compared with GenEval's three prompts for each colour."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._classifiers: dict[str, Tensor] = {}

    def __call__(self, image: Image.Image, found: Sequence[Detection], name: str) -> list[str]:
        """The colour of each of the detected objects called `name`."""
        if name not in self._classifiers:
            self._classifiers[name] = _color_classifier(self._clip, name)
        features = self._clip.encode_images([_cut(image, detection) for detection in found])
        nearest = (features @ self._classifiers[name]).argmax(dim=1)
        return [COLORS[number] for number in nearest.tolist()]


def _cut(image: Image.Image, detection: Detection) -> Image.Image:
    if detection.mask is not None:
        grey = Image.new("RGB", image.size, _BACKGROUND)
        image = Image.composite(image, grey, Image.fromarray(detection.mask))
    left, top, right, bottom = (round(edge) for edge in detection.box)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _color_classifier(clip: Clip, name: str) -> Tensor:
    """Embeddings (E, colours), each the normalised mean of its prompts."""
    forms = (
        "a photo of a {color} {name}",
        "a photo of a {color}-colored {name}",
        "a photo of a {color} object",
    )
    prompts = [[form.format(color=color, name=name) for form in forms] for color in COLORS]
    means = torch.stack([clip.encode_texts(three).mean(dim=0) for three in prompts])
    return F.normalize(means, dim=-1).T
