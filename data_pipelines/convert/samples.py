"""Shared by converters: samples, options, and reading of files with bounds."""

from __future__ import annotations

import argparse
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...common.arguments import integer, share
from ...common.errors import ImageError, UserError, one_line, shown
from ...common.images.reading import MAX_PIXELS
from ...common.images.sources import LARGEST_IMAGE_FILE, inline_image
from ...common.paths import inside, read_bounded, user_path
from ...common.values import finite_number, whole_number
from ..records import MOST_RECORDS, EncodedImage, RecordError
from ..shards.stored_image import stored_image
from ..workers import MOST_WORKERS

#: Upper bound of options: Pillow's sizes are 31 bits.
MOST_PIXELS = 2**31 - 1
#: The name of an image whose bytes are in the entry itself.
INLINE = "in the entry"
#: Most bytes of a text or JSON file of one sample.
LARGEST_TEXT_FILE = 16_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One entry of a data set: its name for messages, and the picklable input of `Converter.records`."""

    name: str
    payload: Any


@dataclass(frozen=True)
class Rejected:
    """The name of an unusable sample, and the reason; `PartWriter.reject` bounds both."""

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", user_path(self.folder))
        whole_number(self.shard_size, "--shard-size", 1, MOST_RECORDS)
        whole_number(self.workers, "--workers", 1, MOST_WORKERS)


@dataclass(frozen=True)
class ImageOptions:
    """Options of every converter of image files.

    max_size: the shorter side is reduced to at most this many pixels (None: kept). max_pixels: larger images
    are refused before decoding; images of more than MAX_PIXELS, the limit of all other commands, are stored
    smaller. held_out: fraction of the images in the split "heldout", chosen by name.
    """

    max_size: int | None = None
    max_pixels: int = MAX_PIXELS
    held_out: float = 0.0

    def __post_init__(self) -> None:
        if self.max_size is not None:
            whole_number(self.max_size, "--max-image-size", 8, MOST_PIXELS)
        whole_number(self.max_pixels, "--max-pixels", 64, MOST_PIXELS)
        finite_number(self.held_out, "--held-out", 0.0, below=1.0)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add these options and `--licence`."""
        add_size_argument(parser)
        refuse = "refuse images of more pixels before decoding them (default %(default)s)"
        parser.add_argument("--max-pixels", type=integer(64), default=MAX_PIXELS, help=refuse)
        held_out = "fraction for the split heldout, chosen by name (default 0)"
        parser.add_argument("--held-out", type=share, default=0.0, help=held_out)
        add_licence_argument(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> ImageOptions:
        return cls(args.max_image_size, args.max_pixels, args.held_out)

    def stored(self, data: bytes, name: str) -> EncodedImage:
        return stored_image(data, name, self.max_size, self.max_pixels)

    def split(self, name: str) -> str:
        """The split of the image or conversation `name`."""
        return "heldout" if stable_fraction(name) < self.held_out else "train"


def files_fingerprint(files: Iterable[Path], root: Path | None = None) -> str:
    """A checksum of the sizes and names of files; names are relative to `root`, or without folders."""
    digest = hashlib.sha256()
    for path in files:
        name = path.name if root is None else path.relative_to(root).as_posix()
        size = path.stat().st_size if path.is_file() else None
        digest.update(os.fsencode(f"{name} {size}\n"))
    return digest.hexdigest()


def add_size_argument(parser: argparse.ArgumentParser) -> None:
    reduce = "reduce the shorter side to at most this (default: keep)"
    parser.add_argument("--max-image-size", type=integer(8), help=reduce)


def add_licence_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--licence", default="unknown", help="licence of the data set for the manifest")


def read_file(path: Path, largest: int = LARGEST_IMAGE_FILE) -> bytes:
    """The content of a regular file of at most `largest` bytes. RecordError for anything else."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise RecordError("it is not a file")
        if about.st_size > largest:
            raise RecordError(f"it has {about.st_size} bytes, more than {largest}")
        return read_bounded(path, largest)
    except RecordError:
        raise
    except (OSError, ValueError) as error:
        raise RecordError("missing or unreadable") from error


def read_image(folder: Path, name: Any, options: ImageOptions) -> EncodedImage:
    """The image `name`: a file of `folder`, a data: URL or base64. RecordError where it is unusable.

    An absolute path has to lead into `folder`; links in the folder are followed.
    """
    if not isinstance(name, str) or not name:
        raise RecordError(f"an image name is {shown(name)}, not a string")
    try:
        data = inline_image(name)
    except ImageError as error:
        raise RecordError(str(error)) from None
    if data is not None:
        return options.stored(data, INLINE)
    if name.startswith(("http://", "https://")):
        raise RecordError(f"image {shown(name)}: a web address; download it first, e.g. with img2dataset")
    root, relative = folder.absolute(), name
    if Path(name).is_absolute() and Path(name).is_relative_to(root):
        relative = str(Path(name).relative_to(root))
    try:
        path = inside(folder, relative, "image", links=True)
    except UserError as error:
        raise RecordError(str(error)) from None
    try:
        data = read_file(path)
    except RecordError as error:
        raise RecordError(f"image {shown(name)}: {error}") from None
    return options.stored(data, name)


def utf8_text(data: bytes, what: str) -> str:
    """The string in a UTF-8 file, without its byte order mark. RecordError where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"its {what} is not UTF-8 at byte {error.start}") from None


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends on `text` only: splits by it never change."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def rejecting(sample: str, build: Callable[[], Iterable[T]]) -> Iterator[T | Rejected]:
    """The items of `build()`, then a `Rejected` with the reason where it raises an error about the data."""
    try:
        yield from build()
    except UserError as error:  # a RecordError, or from a check of `common`
        yield Rejected(sample, one_line(error))
    except OSError as error:
        yield Rejected(sample, f"cannot be read ({error.strerror or one_line(error)})")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        yield Rejected(sample, f"malformed entry ({type(error).__name__}: {one_line(error)})")
