"""What converters have in common: image files checked and made smaller, lists of images, rejected samples.

The driver that turns their records into shards is `convert_run`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, UnidentifiedImageError

from ..common.errors import UserError
from ..tokenizer.processing import DECODING_ERRORS, load_image
from .records import EncodedImage, RecordError

META = "meta.jsonl"
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_JPEG_QUALITY = 95
#: Images of more pixels are refused before they are decoded.
MAX_PIXELS = 64_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Rejected:
    """A sample that cannot be used, and why."""

    sample: str
    reason: str


@dataclass(frozen=True)
class OutputOptions:
    """Where and how shards are written."""

    folder: str | os.PathLike[str]
    shard_size: int = 10_000
    overwrite: bool = False
    progress: bool = True
    workers: int = 1


@dataclass(frozen=True)
class ImageOptions:
    """What every converter of image files lets the user set.

    max_size: the shorter side is reduced to so many pixels (None: kept). max_pixels: an image of more pixels
    is refused before it is decoded. held_out: share of the images for the split "heldout", by their names.
    """

    max_size: int | None = None
    max_pixels: int = MAX_PIXELS
    held_out: float = 0.0

    def __post_init__(self) -> None:
        if self.max_size is not None and self.max_size < 8:
            raise UserError(f"--max-image-size must be at least 8, got {self.max_size}.")
        if self.max_pixels < 64:
            raise UserError(f"--max-pixels must be at least 64, got {self.max_pixels}.")
        if not 0 <= self.held_out < 1:
            raise UserError(f"--held-out is a share from 0 to below 1, got {self.held_out}.")

    def stored(self, data: bytes, name: str) -> EncodedImage:
        """`stored_image` with these limits."""
        return stored_image(data, name, self.max_size, self.max_pixels)

    def split(self, name: str) -> str:
        """The split of everything about the image or conversation `name`."""
        return "heldout" if stable_fraction(name) < self.held_out else "train"


# --- sources with a list of images ----------------------------------------


class ImageList:
    """Images listed by a `meta.jsonl`: a zip, or a folder of the same layout. Picklable.

    Every line of the list is an object whose "file" names the image.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        if not self.path.is_dir() and not (self.path.is_file() and zipfile.is_zipfile(self.path)):
            raise UserError(f"--input {path} is neither a zip nor a folder: expected one that holds {META}.")
        try:
            lines = self._read(META).decode("utf-8").splitlines()
            self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
        except (KeyError, OSError) as error:
            raise UserError(f"--input {path} holds no {META}.") from error
        except ValueError as error:
            raise UserError(f"{META} in {path} is not JSON lines ({error}).") from error

    def _read(self, name: str) -> bytes:
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path)
        return self._zip.read(name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "rows": []}  # rows travel one by one

    def require(self, *fields: str) -> None:
        """Raise UserError unless the rows have these fields: the wrong converter for this input."""
        missing = [name for name in fields if not self.rows or name not in self.rows[0]]
        if missing:
            raise UserError(
                f"{META} in {self.path} has no field '{missing[0]}': is this the right kind of data?"
            )

    def image(self, name: str, max_size: int | None = None) -> EncodedImage:
        """The image `name`, checked. Raises RecordError when it is missing or broken."""
        try:
            data = self._read(name)
        except (KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise RecordError(f"image '{name}': missing or unreadable") from error
        return stored_image(data, name, max_size)


def stored_image(
    data: bytes, name: str, max_size: int | None = None, max_pixels: int = MAX_PIXELS
) -> EncodedImage:
    """An image file for a shard: decoded once to be sure it is whole, and made smaller when it is too big.

    The shorter side becomes at most `max_size` pixels. An image that is small enough keeps its own bytes.
    More than `max_pixels` pixels are refused before anything is decoded. Raises RecordError with the reason.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that the limit here refuses or allows.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as opened:
                kind = opened.format or ""
                image = load_image(opened, max_pixels)
    except UnidentifiedImageError:
        raise RecordError(f"image '{name}': no image, or of an unknown format") from None
    except Image.DecompressionBombError:
        raise RecordError(f"image '{name}': more than {max_pixels} pixels") from None
    except DECODING_ERRORS as error:
        reason = one_line(error).removeprefix("image the given image ")
        raise RecordError(f"image '{name}': {reason}") from error
    shorter = min(image.size)
    if (max_size is None or shorter <= max_size) and kind in _EXTENSIONS:
        return EncodedImage(data, _EXTENSIONS[kind])
    if max_size is not None and shorter > max_size:
        image = shrink(image, max_size)
    return encode_image(image, lossy=kind == "JPEG")


def shrink(image: Image.Image, shorter_side: int) -> Image.Image:
    """`image` with its shorter side reduced to `shorter_side` pixels, averaged over area and aspect kept."""
    scale = shorter_side / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX if scale <= 0.5 else Image.Resampling.BICUBIC)


def encode_image(image: Image.Image, lossy: bool = False) -> EncodedImage:
    """`image` as PNG, or as JPEG of high quality where its source was one already."""
    buffer = io.BytesIO()
    if lossy:
        image.convert("RGB").save(buffer, format="JPEG", quality=_JPEG_QUALITY)
        return EncodedImage(buffer.getvalue(), "jpg")
    image.save(buffer, format="PNG")
    return EncodedImage(buffer.getvalue(), "png")


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends on `text` only: splits by it never change."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def rejecting(sample: str, build: Callable[[], Iterable[T]]) -> Iterator[T | Rejected]:
    """The items of `build()`, then one `Rejected` when it meets something it cannot use."""
    try:
        yield from build()
    except RecordError as error:
        yield Rejected(sample, one_line(error))
    except OSError as error:
        yield Rejected(sample, f"cannot be read ({error.strerror or one_line(error)})")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        yield Rejected(sample, f"malformed entry ({type(error).__name__}: {one_line(error)})")


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())
