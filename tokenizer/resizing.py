"""How an image of any size becomes a square one: the shape, the filter, and the colour of what is added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from PIL import Image

from ..common.errors import UserError, shown
from ..common.limits import validate
from ..common.values import whole_number

ResizeMode = Literal["squash", "crop", "pad"]
Resample = Literal["bicubic", "bilinear", "lanczos", "box", "nearest"]

FILTERS: dict[Resample, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}
#: The colour of zero after normalisation by mean 0.5, to which the encoder reacts least.
GREY = (127, 127, 127)

# Squares in a strip that is resized before it is cropped: one of 1 x 60,000 pixels would not fit in memory.
_LONGEST_STRIP = 64


@dataclass(frozen=True)
class Resizing:
    """The settings `resize_mode`, `resample` and `pad_colour` of `TokenizerSettings`.

    Raises:
        UserError: a value that is not allowed.
    """

    resize_mode: ResizeMode = "squash"
    resample: Resample = "bicubic"
    pad_colour: tuple[int, int, int] = GREY

    def __post_init__(self) -> None:
        object.__setattr__(self, "pad_colour", pad_colour_of(self.pad_colour))
        validate(self)

    @classmethod
    def of(cls, settings: Any) -> Resizing:
        """Those of an object with these attributes: a tokenizer's configuration, an image processor."""
        return cls(settings.resize_mode, settings.resample, settings.pad_colour)

    def __call__(self, image: Image.Image, side: int) -> Image.Image:
        """An RGB image as side x side pixels; one of that size is returned unchanged."""
        if image.size == (side, side):
            return image
        chosen = FILTERS[self.resample]
        if self.resize_mode == "squash":
            return image.resize((side, side), chosen)
        if self.resize_mode == "crop":
            return _cropped(image, side, chosen)
        scale = side / max(image.size)
        small = image.resize((_at_least_1(image.width * scale), _at_least_1(image.height * scale)), chosen)
        square = Image.new("RGB", (side, side), self.pad_colour)
        square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
        return square


def _cropped(image: Image.Image, side: int, chosen: Image.Resampling) -> Image.Image:
    """The shorter side resized to `side`, then the central square, bit for bit as torchvision does it."""
    shortest = min(image.size)
    width, height = (side if length == shortest else int(side * length / shortest) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    if max(width, height) <= _LONGEST_STRIP * side:
        return image.resize((width, height), chosen).crop((left, top, left + side, top + side))
    # The square alone, rounded a little differently.
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    return image.resize((side, side), chosen, box=box)


def _at_least_1(length: float) -> int:
    return max(1, round(length))


def pad_colour_of(given: Any) -> tuple[int, int, int]:
    """Red, green and blue from 0 to 255 as a tuple; UserError for anything else."""
    if not isinstance(given, list | tuple) or len(given) != 3:
        raise UserError(f"pad_colour is {shown(given)}; give red, green and blue from 0 to 255")
    red, green, blue = (whole_number(one, "pad_colour", 0, 255) for one in given)
    return red, green, blue


def resample_of(given: Any) -> Any:
    """The name of a filter that a processor of transformers saved as Pillow's number; others unchanged."""
    if isinstance(given, int) and not isinstance(given, bool):
        names = {filter.value: name for name, filter in FILTERS.items()}
        if given not in names:
            raise UserError(f"resample is {given}; allowed: {', '.join(get_args(Resample))}")
        return names[Image.Resampling(given)]
    return given
