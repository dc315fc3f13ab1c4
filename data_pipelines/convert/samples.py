"""What converters have in common: image files checked and made smaller, lists of images, rejected samples.

The driver that turns their records into shards is `convert_run`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...common.errors import UserError, one_line, shown
from ...common.images.reading import MAX_PIXELS
from ...common.images.sources import LARGEST_IMAGE_FILE
from ...common.json_files import LARGEST_FILE, JsonError, enumerate_lines, parse_json
from ...common.paths import inside, read_bounded, regular_file, user_path
from ...common.values import finite_number, whole_number
from ..records import MOST_RECORDS, EncodedImage, RecordError
from ..shards.stored_image import stored_image
from ..workers import MOST_WORKERS

META = "meta.jsonl"
_SAMPLED_ROWS = 100
#: Bound of what a user may set: Pillow's sizes are 31 bits.
MOST_PIXELS = 2**31 - 1
#: Captions and facts beside an image with more bytes are not read.
LARGEST_TEXT_FILE = 16_000_000

T = TypeVar("T")


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

    def stored(self, data: bytes, name: str) -> EncodedImage:
        """`stored_image` with these limits."""
        return stored_image(data, name, self.max_size, self.max_pixels)

    def split(self, name: str) -> str:
        """The split of everything about the image or conversation `name`."""
        return "heldout" if stable_fraction(name) < self.held_out else "train"


# --- sources with a list of images ----------------------------------------


class ImageList:
    """Images listed by a `meta.jsonl`: a zip, or a folder of the same layout. Picklable.

    Every line of the list is an object whose "file" names the image, inside the zip or folder. `broken` are
    the lines that are not objects.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self._zip: zipfile.ZipFile | None = None
        if not self.path.is_dir():
            regular_file(self.path, "--input")
            if not zipfile.is_zipfile(self.path):
                raise UserError(
                    f"--input {path} is neither a zip nor a folder: expected one that holds {META}."
                )
        try:
            text = self._read(META, LARGEST_FILE).decode("utf-8-sig", "surrogateescape")
        except RecordError as error:
            raise UserError(f"--input {path} holds no {META} that can be read ({error}).") from error
        self.rows: list[dict[str, Any]] = []
        self.broken: list[Rejected] = []
        for number, line in enumerate_lines(text):
            try:
                self.rows.append(_row(line))
            except RecordError as error:
                self.broken.append(Rejected(f"line {number}", str(error)))

    def _read(self, name: object, largest: int) -> bytes:
        """A file of at most `largest` bytes. Raises RecordError for one that is missing or outside."""
        try:
            path = inside(self.path, name, "image")
            if self.path.is_dir():
                return read_file(path, largest)
            self._zip = self._zip or zipfile.ZipFile(self.path)
            member = self._zip.getinfo(str(name))
            if member.file_size > largest:
                raise RecordError(f"it has {member.file_size} bytes, more than {largest}")
            return self._zip.read(member)
        except RecordError as error:
            raise RecordError(f"image {shown(name)}: {error}") from error
        except UserError as error:
            raise RecordError(str(error)) from error
        except Exception as error:
            # zipfile, zlib and its kin raise nearly anything on foreign bytes.
            raise RecordError(f"image {shown(name)}: missing or unreadable") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "rows": [], "broken": []}  # rows travel one by one

    def require(self, *fields: str) -> None:
        """Raise UserError unless the rows have these fields: the wrong converter for this input."""
        missing = [name for name in fields if not any(name in row for row in self.rows[:_SAMPLED_ROWS])]
        if missing:
            raise UserError(
                f"{META} in {self.path} has no field '{missing[0]}': is this the right kind of data?"
            )

    def image(self, name: Any, max_size: int | None = None) -> EncodedImage:
        """The image `name`, checked. Raises RecordError when it is missing or broken."""
        return stored_image(self._read(name, LARGEST_IMAGE_FILE), name, max_size)


def _row(line: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except JsonError as error:
        raise RecordError(f"it is not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("file"), str):
        raise RecordError("it is not a JSON object whose 'file' names an image")
    return row


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
    except UserError as error:  # a RecordError, or what a guard of `common` says of a path or a value
        yield Rejected(sample, one_line(error))
    except OSError as error:
        yield Rejected(sample, f"cannot be read ({error.strerror or one_line(error)})")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        yield Rejected(sample, f"malformed entry ({type(error).__name__}: {one_line(error)})")
