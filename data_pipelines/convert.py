"""From any source to shards: the one driver that all converters share.

A converter is a generator of `Accepted` records and `Rejected` samples; `write_items` stores the first and
counts and names the second, so one corrupt sample never stops a run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ..tokenizer.errors import UserError
from .records import EncodedImage, Record, RecordError
from .sample_codec import EncodedSample
from .shards import ShardWriter, read_manifest

META = "meta.jsonl"
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class Accepted:
    """A record, or one already encoded, and the split it belongs to."""

    record: Record | EncodedSample
    split: str = "train"


@dataclass(frozen=True)
class Rejected:
    """A sample that cannot be used, and why."""

    sample: str
    reason: str


Item = Accepted | Rejected


@dataclass(frozen=True)
class OutputOptions:
    """Where and how shards are written."""

    folder: str | os.PathLike[str]
    shard_size: int = 10_000
    overwrite: bool = False
    progress: bool = True


def write_items(
    items: Iterable[Item],
    output: OutputOptions,
    *,
    source: str,
    licence: str,
    settings: Mapping[str, Any],
    total: int | None = None,
) -> dict[str, Any]:
    """Write all items to a folder of shards and return its manifest.

    Raises UserError when nothing at all could be used: that is a wrong input, not a few corrupt samples.
    """
    writer = ShardWriter(
        output.folder,
        source=source,
        licence=licence,
        settings=settings,
        shard_size=output.shard_size,
        overwrite=output.overwrite,
    )
    with writer:
        for item in tqdm(items, total=total, unit="records", disable=not output.progress, mininterval=1.0):
            if isinstance(item, Rejected):
                writer.reject(item.sample, item.reason)
            elif isinstance(item.record, Record):
                writer.write(item.record, item.split)
            else:
                writer.write_encoded(item.record, item.split)
        if not writer.num_records:
            reason = writer.manifest()["rejected"]["samples"][:1]
            raise UserError(
                f"No sample of {source} could be used{': ' + reason[0]['reason'] if reason else ''}."
            )
    return read_manifest(output.folder)


# --- sources with a list of images ----------------------------------------


class ImageList:
    """Images listed by a `meta.jsonl`: a zip, or a folder of the same layout.

    Every line of the list is an object whose "file" names the image.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            self._read: Callable[[str], bytes] = lambda name: (self.path / name).read_bytes()
        elif self.path.is_file() and zipfile.is_zipfile(self.path):
            self._read = zipfile.ZipFile(self.path).read
        else:
            raise UserError(f"--input {path} is neither a zip nor a folder: expected one that holds {META}.")
        try:
            lines = self._read(META).decode("utf-8").splitlines()
            self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
        except (KeyError, OSError) as error:
            raise UserError(f"--input {path} holds no {META}.") from error
        except ValueError as error:
            raise UserError(f"{META} in {path} is not JSON lines ({error}).") from error

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


def stored_image(data: bytes, name: str, max_size: int | None = None) -> EncodedImage:
    """An image file for a shard: decoded once to be sure it is whole, and made smaller when it is too big.

    The shorter side becomes at most `max_size` pixels. An image that is small enough keeps its own bytes.
    Raises RecordError with the reason.
    """
    # Here and not above: it needs torch, which scene generation in many processes does not.
    from ..tokenizer.processing import load_image

    try:
        with Image.open(io.BytesIO(data)) as opened:
            kind = opened.format or ""
            image = load_image(opened)
    except UnidentifiedImageError:
        raise RecordError(f"image '{name}': no image, or of an unknown format") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RecordError(f"image '{name}': {_one_line(error)}") from error
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


def rejecting(sample: str, build: Callable[[], Iterable[Item]]) -> Iterator[Item]:
    """The items of `build()`, then one `Rejected` when it meets something it cannot use."""
    try:
        yield from build()
    except RecordError as error:
        yield Rejected(sample, _one_line(error))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        yield Rejected(sample, f"malformed entry ({type(error).__name__}: {_one_line(error)})")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
