"""Image files for shards: checked by decoding, and reduced where they are too large."""

from __future__ import annotations

import io

from PIL import Image

from ...common.errors import ImageError
from ...common.images.reading import MAX_PIXELS, decode_image
from ..records import STORED_FORMATS, EncodedImage, RecordError

#: Formats of photos are re-encoded as JPEG: as PNG they would be many times as large.
_PHOTO_FORMATS = ("JPEG", "AVIF", "HEIF", "JPEG2000")
_JPEG_QUALITY = 95


def stored_image(
    data: bytes, name: str, max_size: int | None = None, max_pixels: int = MAX_PIXELS
) -> EncodedImage:
    """An image file for a shard: decoded once to check that it is intact, and reduced if too large.

    The shorter side becomes at most `max_size` pixels, the image at most MAX_PIXELS. A small enough image
    keeps its bytes; of several images in one file the first is used. RecordError, with the reason, for an
    image that cannot be decoded; one of more than `max_pixels` pixels is refused before decoding.
    """
    try:
        decoded = decode_image(data, max_pixels)
    except ImageError as error:
        raise RecordError(f"image '{name}': {error}") from error
    image, kind = decoded.image, decoded.format
    shorter = min(image.size)
    most = shorter if max_size is None else min(shorter, max_size)
    if image.width * image.height > MAX_PIXELS:
        most = min(most, int(shorter * (MAX_PIXELS / (image.width * image.height)) ** 0.5) - 1)
    if most == shorter and kind in STORED_FORMATS:
        return EncodedImage(decoded.data, STORED_FORMATS[kind])
    if most < shorter:
        image = shrink(image, max(1, most))
    return encode_image(image, lossy=kind in _PHOTO_FORMATS)


def shrink(image: Image.Image, shorter_side: int) -> Image.Image:
    """`image` reduced to `shorter_side` pixels on its shorter side, its aspect ratio kept."""
    scale = shorter_side / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX if scale <= 0.5 else Image.Resampling.BICUBIC)


def encode_image(image: Image.Image, lossy: bool = False) -> EncodedImage:
    """`image` as PNG, or with `lossy` as JPEG of high quality."""
    buffer = io.BytesIO()
    if lossy:
        image.convert("RGB").save(buffer, format="JPEG", quality=_JPEG_QUALITY)
    else:
        image.save(buffer, format="PNG")
    return EncodedImage(buffer.getvalue(), "jpg" if lossy else "png")
