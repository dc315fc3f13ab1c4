"""What converters have in common: samples and rejected ones, options, and files read with bounds."""

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

#: Bound of what a user may set: Pillow's sizes are 31 bits.
MOST_PIXELS = 2**31 - 1
#: Instead of the name of an image that is in the entry itself.
INLINE = "in the entry"
#: Files of captions and facts with more bytes are not read.
LARGEST_TEXT_FILE = 16_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One entry of a data set: its name for messages, and whatever `Converter.records` needs. Picklable."""

    name: str
    payload: Any


@dataclass(frozen=True)
class Rejected:
    """A sample that cannot be used, and why."""

    sample: str
    reason: str

    def __post_init__(self) -> None:
        # Names and reasons quote the data, and are kept and shown: bounded, and in UTF-8.
        object.__setattr__(self, "sample", one_line(self.sample))
        object.__setattr__(self, "reason", one_line(self.reason))


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
    """What every converter of image files lets the user set.

    max_size: the shorter side is reduced to so many pixels (None: kept). max_pixels: an image of more pixels
    is refused before it is decoded; above MAX_PIXELS, which is what all other commands read, it is stored
    smaller. held_out: share of the images for the split "heldout", by their names.
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
        """Add the options of images, and the licence that the manifest names."""
        add_size_argument(parser)
        parser.add_argument(
            "--max-pixels",
            type=integer(64),
            default=MAX_PIXELS,
            help="refuse images of more pixels before decoding them (default %(default)s)",
        )
        parser.add_argument(
            "--held-out", type=share, default=0.0, help="share for the split heldout, by name (default 0)"
        )
        add_licence_argument(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> ImageOptions:
        """The options of a parsed command line."""
        return cls(args.max_image_size, args.max_pixels, args.held_out)

    def stored(self, data: bytes, name: str) -> EncodedImage:
        """`stored_image` with these limits."""
        return stored_image(data, name, self.max_size, self.max_pixels)

    def split(self, name: str) -> str:
        """The split of everything about the image or conversation `name`."""
        return "heldout" if stable_fraction(name) < self.held_out else "train"


def files_fingerprint(files: Iterable[Path], root: Path | None = None) -> str:
    """A checksum of the sizes and names of files: relative to `root`, or without their folders."""
    digest = hashlib.sha256()
    for path in files:
        name = path.name if root is None else path.relative_to(root).as_posix()
        size = path.stat().st_size if path.is_file() else None
        digest.update(os.fsencode(f"{name} {size}\n"))
    return digest.hexdigest()


def add_size_argument(parser: argparse.ArgumentParser) -> None:
    """`--max-image-size`."""
    parser.add_argument(
        "--max-image-size", type=integer(8), help="reduce the shorter side to at most this (default: keep)"
    )


def add_licence_argument(parser: argparse.ArgumentParser) -> None:
    """`--licence`."""
    parser.add_argument("--licence", default="unknown", help="licence of the data set for the manifest")


def read_file(path: Path, largest: int = LARGEST_IMAGE_FILE) -> bytes:
    """The content of a file. Raises RecordError where it is not a regular file, or has more bytes."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise RecordError("it is not a file")
        if about.st_size > largest:
            raise RecordError(f"it has {about.st_size} bytes, more than {largest}")
        return read_bounded(path, largest)
    except (OSError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError("missing or unreadable") from error


def read_image(folder: Path, name: Any, options: ImageOptions) -> EncodedImage:
    """The image `name`: a file of `folder`, a data: URL or base64. Raises RecordError where it is unusable.

    An absolute path has to lie in `folder`; links in the folder are followed.
    """
    if not isinstance(name, str) or not name:
        raise RecordError(f"an image is named by a text, got {shown(name)}")
    try:
        data = inline_image(name)
    except ImageError as error:
        raise RecordError(str(error)) from None
    if data is not None:
        return options.stored(data, INLINE)
    if name.startswith(("http://", "https://")):
        raise RecordError(
            f"image {shown(name)}: a web address; download it first, for example with img2dataset"
        )
    path = _path_in(folder, name)
    try:
        data = read_file(path)
    except RecordError as error:
        raise RecordError(f"image {shown(name)}: {error}") from None
    return options.stored(data, name)


def _path_in(folder: Path, name: str) -> Path:
    """The path `name` of `folder`. Raises RecordError for one that leads out of it."""
    root = folder.absolute()
    if Path(name).is_absolute() and Path(name).is_relative_to(root):
        name = str(Path(name).relative_to(root))
    try:
        return inside(folder, name, "image", links=True)
    except UserError as error:
        raise RecordError(str(error)) from None


def utf8_text(data: bytes, what: str) -> str:
    """The text of a file without its byte order mark. Raises RecordError where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"its {what} is not UTF-8 at byte {error.start}") from None


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that depends on `text` only: splits by it never change."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def rejecting(sample: str, build: Callable[[], Iterable[T]]) -> Iterator[T | Rejected]:
    """The items of `build()`, then one `Rejected` when it meets something it cannot use."""
    try:
        yield from build()
    except UserError as error:  # a RecordError, or what a check of `common` finds
        yield Rejected(sample, one_line(error))
    except OSError as error:
        yield Rejected(sample, f"cannot be read ({error.strerror or one_line(error)})")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        yield Rejected(sample, f"malformed entry ({type(error).__name__}: {one_line(error)})")
