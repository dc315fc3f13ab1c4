"""The reader of all images that users give.

Every error of Pillow becomes an ImageError; sizes are checked before decoding; images with damaged metadata
are still read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError, first_line
from .damaged_files import first_image, orientation, without_metadata
from .sources import float_levels, image_source

#: Images of more pixels are refused before they are decoded.
MAX_PIXELS = 64_000_000
#: The limit of JPEG. The cost of resizing grows with the side, not with the pixels.
LONGEST_SIDE = 65_535
#: Parts of a progressive JPEG. Each costs a pass over all pixels, and an empty one takes a hundred bytes.
MOST_SCANS, _SCAN = 64, b"\xff\xda"
#: Formats of Pillow that are never read: EPS is a program that another program runs, the rest need software
#: of their fields.
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
# Damaged metadata does not matter here. (A filter around each call would not be thread-safe.)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Tiff|Jpeg|Mpo)ImagePlugin")


@dataclass(frozen=True)
class DecodedImage:
    """The image of a file: upright RGB on white, Pillow's name of the format, and the file's bytes.

    The bytes lack metadata that could not be read, and images after the first.
    """

    image: Image.Image
    format: str
    data: bytes


def is_image_name(name: str) -> bool:
    """Whether the suffix, in any case, is that of a format that the installed Pillow reads.

    False for `._photo.jpg`, which macOS writes next to `photo.jpg` on foreign disks and into tars.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.name.startswith("._"):
        return False
    Image.init()  # registers every format, once
    kind = Image.EXTENSION.get(path.suffix.lower())
    return kind == "MPO" or (kind in Image.OPEN and kind not in REFUSED_FORMATS)


def load_image(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as upright RGB; transparent parts become white.

    source: a path (an existing one is taken literally, in others ~ is expanded), a PIL image, the bytes of an
    image file, an open file, a data: URL, base64, a NumPy array or torch tensor (see `array_image`), or an
    object whose `data` is bytes.

    Errors:
        ImageError for anything else, a broken image, and one of more than `max_pixels` pixels, which is
        refused before it is decoded.
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
        if plain is not None:
            with suppress(ImageError):  # the reason to report is the one of the original file
                return _decode(plain, max_pixels)
        raise


def open_image(data: bytes) -> Image.Image:
    """The image of a file's bytes, decoded lazily: pass it to `load_image`, which reports errors of decoding.

    Like Image.open, but without Pillow's own limit of pixels. Raises ImageError with the reason if the bytes
    are not an image.
    """
    Image.init()
    known = [kind for kind in Image.ID if kind not in REFUSED_FORMATS]
    reason = "is not an image, or in a format that Pillow cannot read"
    # Formats without a signature come last: they accept nearly anything.
    for kind in sorted(known, key=lambda kind: Image.OPEN[kind][1] is None):
        factory, accept = Image.OPEN[kind]
        signed: bool | str | None = None
        try:
            signed = accept and accept(data[:16])
            if isinstance(signed, str):  # a known format that this Pillow was built without
                reason = f"cannot be read: {first_line(ValueError(signed))}"
            elif signed or accept is None:
                return factory(io.BytesIO(data), "")
        except Image.DecompressionBombError:
            reason = _TOO_MANY
        except Exception as error:  # plugins raise many types
            if signed:
                reason = f"is broken: {first_line(error)}"
    raise ImageError(reason)


@contextmanager
def pillow_errors() -> Iterator[None]:
    """Turn every error of Pillow into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("is broken, or needs more memory than there is") from None
    except Exception as error:  # TypeError, struct.error, RuntimeError, …
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
    """Bytes of an MPO's first image; of the complete file if its table is wrong."""
    with pillow_errors():
        size = image.mpinfo[0xB002][0]["Size"]
        return size if 0 < size <= len(data) else len(data)


def _upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """Check the size, decode, turn upright, put on white and convert."""
    _check_size(image, max_pixels)
    with pillow_errors():
        image.load()
        _check_size(image, max_pixels)  # an icon's images may be bigger than its header states
        turn = _UPRIGHT.get(_orientation(image))
        if turn is not None:
            image = image.transpose(turn)
        if image.mode == "F" or image.mode.startswith("I"):
            image = Image.fromarray(_levels(np.asarray(image)))
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image.convert("RGBA"))
        result = image.convert("RGB")
        result.info = {}  # otherwise its orientation would be applied again
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
    except Exception:  # another tag is damaged
        exif = image.info.get("exif")
        return orientation(exif) if isinstance(exif, bytes) else 1


def _levels(values: np.ndarray) -> np.ndarray:
    """Grey levels, floats or 16-bit integers, as uint8; convert("RGB") would clip both at 255."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65_535:
        return float_levels(values)
    return (values / 257.0).round().astype(np.uint8)
