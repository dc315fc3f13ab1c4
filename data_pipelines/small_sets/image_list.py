"""Images listed by a `meta.jsonl` in a zip or folder, and the base class of their converters."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ...common import arguments
from ...common.errors import UserError, shown
from ...common.images.sources import LARGEST_IMAGE_FILE
from ...common.json_files import LARGEST_FILE, JsonError, enumerate_lines, parse_json
from ...common.outputs import Inputs
from ...common.paths import inside, regular_file, user_path
from ...common.values import one_of, whole_number
from ..convert.converter import Converter
from ..convert.samples import MOST_PIXELS, Rejected, Sample, add_size_argument, read_file
from ..records import EncodedImage, RecordError
from ..shards.stored_image import stored_image

META = "meta.jsonl"
TASKS = ("vqa", "t2i", "all")
_SAMPLED_ROWS = 100


class ImageList:
    """Images listed by a `meta.jsonl`: a zip, or a folder with the same files. Picklable, without its rows.

    Every line of the list is an object whose "file" names the image; `broken` are the other lines.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = user_path(path)
        self._zip: zipfile.ZipFile | None = None
        if not self.path.is_dir():
            regular_file(self.path, "--input")
            if not zipfile.is_zipfile(self.path):
                raise UserError(f"--input {path} is neither a zip nor a folder: give one that holds {META}.")
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
        """A file of at most `largest` bytes. RecordError for one that is missing, too big or outside."""
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
            # zipfile and zlib raise nearly anything on foreign bytes.
            raise RecordError(f"image {shown(name)}: missing or unreadable") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "rows": [], "broken": []}  # rows are sent one by one

    def require(self, *fields: str) -> None:
        """Raise UserError unless the first rows have these fields; otherwise the input is of another set."""
        for name in fields:
            if not any(name in row for row in self.rows[:_SAMPLED_ROWS]):
                raise UserError(f"{META} in {self.path} has no field '{name}': is this the right data set?")

    def image(self, name: Any, max_size: int | None = None) -> EncodedImage:
        """The image `name`, checked by decoding. RecordError where it is missing or broken."""
        return stored_image(self._read(name, LARGEST_IMAGE_FILE), name, max_size)


def _row(line: str) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except JsonError as error:
        raise RecordError(f"it is not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("file"), str):
        raise RecordError("it is not a JSON object whose 'file' names an image")
    return row


@dataclass
class ListConverter(Converter):
    """Base class of converters of an `ImageList`, whose samples are its rows.

    max_image_size: the shorter side is reduced to at most this many pixels (None: kept).
    """

    #: Fields that rows must have, and attributes that are settings in the manifest.
    fields: ClassVar[tuple[str, ...]]
    options: ClassVar[tuple[str, ...]]

    path: str | os.PathLike[str]
    max_image_size: int | None = None

    def __post_init__(self) -> None:
        self.images = ImageList(self.path)
        self.images.require(*self.fields)
        if self.max_image_size is not None:
            whole_number(self.max_image_size, "--max-image-size", 8, MOST_PIXELS)
        task = one_of(getattr(self, "task", "vqa"), "--task", TASKS)
        self.records_per_sample = getattr(self, "variants", 1) + (task == "all")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", type=arguments.path, required=True, help="the data set")
        add_size_argument(parser)
        if "task" in cls.options:
            task = "questions, image generation or both (default %(default)s)"
            parser.add_argument("--task", choices=TASKS, default="vqa", help=task)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> ListConverter:
        return cls(args.input, **{name: getattr(args, name) for name in cls.options})

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.options}

    def inputs(self) -> Inputs:
        return {"--input": self.images.path}

    def fingerprint(self) -> str:
        rows = json.dumps(self.images.rows, sort_keys=True, ensure_ascii=False)
        broken = "".join(f"\n{one.sample} {one.reason}" for one in self.images.broken)
        return hashlib.sha256((rows + broken).encode()).hexdigest()

    def total(self) -> int:
        return len(self.images.rows) + len(self.images.broken)

    def samples(self) -> Iterator[Sample | Rejected]:
        for row in self.images.rows:
            yield Sample(row["file"], row)
        yield from self.images.broken
