"""Every form in which users give an image, as the bytes of an image file or as a PIL image."""

from __future__ import annotations

import base64
import binascii
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image

from ..errors import ImageError, UserError, shown
from ..paths import is_data_url, read_bounded, regular_file, user_path

#: Files of more bytes are not read: 64 million pixels of 16-bit RGB, uncompressed, are fewer.
LARGEST_IMAGE_FILE = 400_000_000
_SCHEME = re.compile(r"\s*(file(?=:)|[A-Za-z][A-Za-z0-9+.-]*(?=://))", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")
#: First bytes of the formats expected in base64; AVIF and HEIF have theirs four bytes later.
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
#: Floats this far outside 0 to 1 still count as 0 to 1: bicubic resizing overshoots.
_OVERSHOOT = 0.1
_CHANNELS = (1, 3, 4)


def image_source(source: Any) -> tuple[str, bytes | Image.Image]:
    """A name of the image for messages, and its file's bytes or a PIL image.

    Errors:
        ImageError for a file that cannot be read, a web address, and anything that is not an image.
    """
    given = "the given image"
    if isinstance(source, Image.Image):
        return given, source
    if isinstance(source, os.PathLike):
        return _from_path(Path(os.fsdecode(source)))
    if isinstance(source, str):
        return _from_text(source)
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return given, _from_base64(data) or data
    if isinstance(getattr(source, "data", None), bytes):  # an EncodedImage
        return given, source.data
    if callable(getattr(source, "read", None)):  # an open file
        return given, _from_file(source)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(source, torch.Tensor):
        if source.layout != torch.strided or source.is_meta or source.is_quantized:
            raise ImageError("an image is a sparse, quantized or meta tensor; give a dense one")
        source = source.detach().cpu()
        source = (source.float() if source.dtype.is_floating_point else source).numpy()
    if hasattr(source, "__array__"):
        return given, array_image(np.asarray(source))
    kind = type(source).__name__
    raise ImageError(f"an image is given as {kind}; give a path, a PIL image, bytes, an array or a data: URL")


def array_image(array: np.ndarray) -> Image.Image:
    """An array or tensor as an image: (height, width), or with 1, 3 or 4 channels last or first.

    Integers are 0 to 255, floats 0 to 1 or 0 to 255; False and True are black and white.

    Errors:
        ImageError for other shapes, types and values.
    """
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in _CHANNELS):
        raise ImageError(f"an image array has shape {array.shape}; give one image as (height, width, 3)")
    if array.dtype.kind not in "biuf":
        raise ImageError(f"an image array has type {array.dtype}; give uint8, or floats from 0 to 1")
    low, high = float(array.min()), float(array.max())
    if not (low >= -_OVERSHOOT and high <= 255):
        raise ImageError(
            f"an image array has values from {low:.4g} to {high:.4g}; give uint8, or floats from 0 to 1"
        )
    if array.dtype.kind in "bf":
        array = float_levels(array)
    array = np.ascontiguousarray(array, dtype=np.uint8)
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array)


def float_levels(values: np.ndarray) -> np.ndarray:
    """Floats as levels of 0 to 255, uint8, by their range.

    Within 0 to 1 (a little more is clipped) they are multiplied by 255; within 0 to 255 they are kept; any
    other range is stretched from its least to its greatest value. Non-finite values become 0.
    """
    values = values.astype(np.float64)
    values = np.where(np.isfinite(values), values, 0.0)
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        values = values * 255.0
    elif low < -_OVERSHOOT or high > 255:
        values = (values - low) * (255.0 / (high - low))
    return values.clip(0.0, 255.0).round().astype(np.uint8)


def read_image_file(path: Path) -> bytes:
    """The bytes of a regular file of at most LARGEST_IMAGE_FILE bytes. ImageError for anything else."""
    try:
        if not path.exists():
            raise ImageError(f"image {shown(str(path))} does not exist")
        size = regular_file(path, "image").stat().st_size
        if size > LARGEST_IMAGE_FILE:
            raise ImageError(f"image {shown(str(path))} has {size} bytes, more than {LARGEST_IMAGE_FILE}")
        return read_bounded(path, LARGEST_IMAGE_FILE)
    except OSError as error:
        raise ImageError(f"image {shown(str(path))} cannot be read: {error.strerror}") from None
    except UserError as error:
        raise ImageError(str(error)) from None


def inline_image(text: str) -> bytes | None:
    """The bytes of an image file in `text`, a data: URL or base64; None for a name.

    Errors:
        ImageError for a broken data: URL.
    """
    return _from_data_url(text.strip()) if is_data_url(text) else _from_base64(text)


def _from_text(text: str) -> tuple[str, bytes]:
    """An existing path, taken literally; else a URL, base64, or a path to expand."""
    if _is_there(text):
        return _from_path(text)
    if (data := inline_image(text)) is not None:
        return "the given image", data
    if (scheme := _SCHEME.match(text)) is None:
        return _from_path(text)
    if scheme[1].lower() != "file":
        raise ImageError(f"image {shown(text)} is a web address: download it first, and give the file")
    try:
        return _from_path(url2pathname(urlsplit(text).path))
    except ValueError:  # "file://[", an invalid host
        raise ImageError(f"image {shown(text)} is not a path") from None


def _from_path(given: str | Path) -> tuple[str, bytes]:
    try:
        path = Path(given) if _is_there(given) else user_path(given)
    except UserError as error:
        raise ImageError(f"image: {error}") from None
    return f"image {shown(str(path))}", read_image_file(path)


def _is_there(path: str | Path) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a zero byte, or half of a surrogate pair
        return False


def _from_data_url(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or len(body) > 2 * LARGEST_IMAGE_FILE:
        raise ImageError(f"image {shown(url)} is not a data: URL that can be read: data:image/png;base64,…")
    if not head.lower().rstrip().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return _decode_base64(unquote(body))
    except (binascii.Error, ValueError):
        raise ImageError(f"image {shown(url)}: what follows the comma is not base64") from None


def _from_base64(text: str | bytes) -> bytes | None:
    """The bytes of an image file if `text` is its base64, else None."""
    start = text[:64].decode("latin-1") if isinstance(text, bytes) else text[:64]
    if len(text) < 32 or len(text) > 2 * LARGEST_IMAGE_FILE or not _BASE64.fullmatch(start):
        return None
    try:
        head = _decode_base64(start[: len(start) // 4 * 4])
        if not head.startswith(_SIGNATURES) and head[4:8] != b"ftyp":
            return None
        return _decode_base64(text.decode("ascii") if isinstance(text, bytes) else text)
    except (binascii.Error, ValueError):
        return None


def _decode_base64(text: str) -> bytes:
    """Decode base64 of either alphabet, with white space, with or without padding."""
    text = re.sub(r"\s+", "", text).translate(str.maketrans("-_", "+/")).rstrip("=")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _from_file(file: Any) -> bytes:
    try:
        if callable(getattr(file, "seek", None)):
            file.seek(0)  # a file just written is at its end
        data = file.read(LARGEST_IMAGE_FILE + 1)
    except (OSError, ValueError) as error:  # closed, or not open for reading
        raise ImageError(f"the given file cannot be read: {error}") from None
    if not isinstance(data, bytes) or len(data) > LARGEST_IMAGE_FILE:
        raise ImageError("the given file is too big, or not open as bytes: open it with 'rb'")
    return data
