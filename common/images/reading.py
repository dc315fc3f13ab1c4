"""Images that users give: which files are images, and the one reader of them all, with one kind of error.

Whatever Pillow's readers raise at foreign bytes becomes an ImageError; sizes are checked before anything is
decoded; damaged metadata costs no pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError, first_line
from .damaged_files import first_image, orientation, without_metadata
from .sources import float_levels, image_source

#: Images of more pixels are refused before they are decoded, by all commands alike.
MAX_PIXELS = 64_000_000
#: As JPEG allows. The cost of resizing grows with the side, not with the pixels.
LONGEST_SIDE = 65_535
#: Parts of a progressive JPEG. Each costs a pass over all pixels, and an empty one takes a hundred bytes.
MOST_SCANS, _SCAN = 64, b"\xff\xda"
#: Formats that Pillow names and that are never read: EPS is a program that another program would have to run,
#: and the rest need software of the field they come from.
REFUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "FITS", "GRIB", "HDF5", "MPEG"})

#: A path, a PIL image, bytes, an open file, a data: URL, base64, an array or a tensor: see `load_image`.
ImageSource = Any

_TOO_MANY = "holds an image of more pixels than are allowed"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Damaged metadata is no business of who looks at pixels. (A filter for one block would not be thread-safe.)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Tiff|Jpeg|Mpo)ImagePlugin")


@dataclass(frozen=True)
class DecodedImage:
    """An image of a file: upright RGB on white, Pillow's name of the format, and bytes that hold it.

    The bytes are the file's own, but for metadata that could not be read and for pictures after the first.
    """

    image: Image.Image
    format: str
    data: bytes


def is_image_name(name: str) -> bool:
    """Whether a file of this name is an image, by the ending in any case: whatever Pillow here can read.

    `._photo.jpg`, which macOS writes beside `photo.jpg` on foreign disks and into tars, is none.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.name.startswith("._"):
        return False
    Image.init()  # registers every format, once
    kind = Image.EXTENSION.get(path.suffix.lower())
    return kind == "MPO" or (kind in Image.OPEN and kind not in REFUSED_FORMATS)


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as upright RGB; transparent parts become white.

    source: a path (a path that exists is taken literally; ~ is expanded), a PIL image, the bytes of an image
    file, an open file, a data: URL, base64, a NumPy array or torch tensor (see `array_image`), or anything
    whose `data` is bytes.

    Errors:
        ImageError for a missing file, a folder, a pipe, a web address, something that is not an image, a
        broken image, and one of more than `max_pixels` pixels, which is refused before it is decoded.
    """
    name, found = image_source(source)
    try:
        if isinstance(found, Image.Image):
            return _upright_rgb(found, max_pixels)
        return decode_image(found, max_pixels).image
    except ImageError as error:
        raise ImageError(f"{name} {error}") from None


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> DecodedImage:
    """The image of a file's bytes. Raises ImageError with the reason, as in "is broken: …"."""
    try:
        return _decode(data, max_pixels)
    except ImageError:
        plain = without_metadata(data)
        if plain is None:
            raise
        try:
            return _decode(plain, max_pixels)
        except ImageError:
            pass  # the first reason is the file's own
        raise


def open_image(data: bytes) -> Image.Image:
    """The image of a file's bytes, decoded when it is used: give it to `load_image`, whose errors are clear.

    Like Image.open, but for Pillow's own limit of pixels, which knows nothing of `max_pixels`. Raises
    ImageError with the reason where the bytes are not an image.
    """
    Image.init()
    known = [kind for kind in Image.ID if kind not in REFUSED_FORMATS]
    reason = "is not an image, or in a format that Pillow cannot read"
    # Formats without a signature come last: they take much for theirs.
    for kind in sorted(known, key=lambda kind: Image.OPEN[kind][1] is None):
        factory, accept = Image.OPEN[kind]
        signed: bool | str | None = None
        try:
            signed = accept and accept(data[:16])
            if isinstance(signed, str):  # the format is known, and this Pillow was built without it
                reason = f"cannot be read: {first_line(ValueError(signed))}"
            elif signed or accept is None:
                return factory(io.BytesIO(data), "")
        except Image.DecompressionBombError:
            reason = _TOO_MANY
        except Exception as error:  # plugins raise whatever they meet
            if signed:
                reason = f"is broken: {first_line(error)}"
    raise ImageError(reason)


@contextmanager
def pillow_errors() -> Iterator[None]:
    """Whatever Pillow raises at foreign bytes, as one ImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("is broken, or needs more memory than there is") from None
    except (
        Exception
    ) as error:  # its readers raise nearly everything: TypeError, struct.error, RuntimeError, …
        raise ImageError(f"is broken: {first_line(error)}") from None


def _decode(data: bytes, max_pixels: int) -> DecodedImage:
    if data.startswith(b"\xff\xd8\xff") and data.count(_SCAN) > MOST_SCANS:
        raise ImageError(f"is broken: it has {data.count(_SCAN)} scans, where photos have at most a dozen")
    opened = open_image(data)
    kind = opened.format or ""
    if kind == "MPO":
        data, kind = first_image(data, _size_of_first(opened, data)), "JPEG"
        opened = open_image(data)
    return DecodedImage(_upright_rgb(opened, max_pixels), kind, data)


def _size_of_first(image: Any, data: bytes) -> int:
    """Bytes of an MPO's first picture; the whole file's where its table cannot be right."""
    with pillow_errors():
        size = image.mpinfo[0xB002][0]["Size"]
        return size if 0 < size <= len(data) else len(data)


def _upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """Check the size, decode, turn upright, put on white and convert."""
    _check_size(image, max_pixels)
    with pillow_errors():
        image.load()
        _check_size(image, max_pixels)  # an icon's pictures may be bigger than it says
        turn = _UPRIGHT.get(_orientation(image))
        if turn is not None:
            image = image.transpose(turn)
        if image.mode == "F" or image.mode.startswith("I"):
            image = Image.fromarray(_levels(np.asarray(image)))
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        result = image.convert("RGB")
        result.info = {}  # or its orientation would turn it once more when it is given again
        return result


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"is empty ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(f"has {width} x {height} pixels; at most {max_pixels} are allowed: make it smaller")
    if max(width, height) > LONGEST_SIDE:
        raise ImageError(f"has {width} x {height} pixels; a side has at most {LONGEST_SIDE}: cut it")


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(0x0112)
    except Exception:  # one damaged tag, of many, that has nothing to do with it
        exif = image.info.get("exif")
        return orientation(exif) if isinstance(exif, bytes) else 1


def _levels(values: np.ndarray) -> np.ndarray:
    """Grey of floats, or of whole numbers of 16 bits, as uint8; convert("RGB") would clip both at 255."""
    if values.dtype.kind == "f":
        return float_levels(values)
    values = values.astype(np.float64)
    if values.min() < 0 or values.max() > 65_535:
        return float_levels(values)
    return (values / 257.0).round().astype(np.uint8)
