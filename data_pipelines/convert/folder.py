"""Convert a folder of images with captions.

The captions are next to the images (`cat.jpg` with `cat.txt`, `cat.caption` or `cat.json`), or in a list of
files and captions: CSV, TSV, JSON lines or a JSON list.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...common import arguments
from ...common.errors import UserError, one_line
from ...common.files import file_checksum
from ...common.images.reading import is_image_name
from ...common.json_files import is_encodable
from ...common.outputs import Inputs
from ...common.paths import regular_file, user_path, walk_files
from ..records import Record, RecordError
from .captions import CAPTION_FIELDS, CaptionOptions, caption_list, find_caption
from .converter import Converter
from .foreign_values import json_value
from .rows import TABLES, Table, is_table, read_rows
from .samples import LARGEST_TEXT_FILE, Rejected, Sample, files_fingerprint, read_file, read_image, utf8_text

FILE_FIELDS = ("file_name", "file", "filename", "image", "image_path", "path")
#: Lists that are used by default, with the names of Hugging Face's image folders.
DEFAULT_LISTS = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
_CAPTION_SUFFIXES = (".txt", ".caption", ".json")
_LIST_SUFFIXES = (*TABLES, ".jsonl", ".json")


@dataclass
class FolderConverter(Converter):
    """Converts the images of `folder` and its subfolders.

    captions: a list that names the images relative to `folder`; None takes one of DEFAULT_LISTS in the
    folder, or else the files next to the images. `image_field` and `caption_field` name the columns of the
    list (None: the usual names).
    """

    kind = "folder"
    summary = "images with captions next to them or in a CSV, TSV or JSON lines file"
    example = """dualtoken prepare folder --input photos --output data/photos --task all
  dualtoken prepare folder --input coco/train2017 --captions captions.jsonl --output data/coco --task t2i"""

    folder: Path
    captions: Path | None = None
    image_field: str | None = None
    caption_field: str | None = None
    licence: str = "unknown"
    options: CaptionOptions = field(default_factory=CaptionOptions)

    def __post_init__(self) -> None:
        self.folder = user_path(self.folder)
        if not self.folder.is_dir():
            raise UserError(f"--input {self.folder} is not a folder of images.")
        if self.captions is None:
            found = (self.folder / name for name in DEFAULT_LISTS)
            self.captions = next((path for path in found if path.is_file()), None)
        else:
            self.captions = regular_file(user_path(self.captions), "--captions")
            if self.captions.suffix.lower() not in _LIST_SUFFIXES:
                allowed = ", ".join(_LIST_SUFFIXES)
                raise UserError(f"--captions {self.captions}: give a file that ends in {allowed}.")
        self.name = one_line(self.folder.resolve().name)
        self._found: list[Path] | None = None
        self._skipped: dict[str, int] = {}
        self.records_per_sample = self.options.records_per_sample

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", type=arguments.path, required=True, help="the data set")
        CaptionOptions.add_arguments(parser, "column of the list or field of the JSON")
        captions = "CSV, TSV or JSON lines that name the images"
        parser.add_argument("--captions", type=arguments.path, help=captions)
        parser.add_argument("--image-column", help="column with image file names (default: a usual name)")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> FolderConverter:
        options = CaptionOptions.from_arguments(args)
        columns = {"image_field": args.image_column, "caption_field": args.caption_column}
        return cls(args.input, args.captions, **columns, licence=args.licence, options=options)

    def settings(self) -> dict[str, Any]:
        fields = {"image_field": self.image_field, "caption_field": self.caption_field}
        captions = "next to the images" if self.captions is None else one_line(self.captions.name)
        return {"captions": captions, **fields, **asdict(self.options)}

    def inputs(self) -> Inputs:
        return {"--input": self.folder, "--captions": self.captions}

    def skipped(self) -> Mapping[str, int]:
        return self._skipped

    def fingerprint(self) -> str:
        if self.captions is not None:
            return file_checksum(self.captions)
        return files_fingerprint(self._images(), self.folder)

    def total(self) -> int | None:
        return len(self._images()) if self.captions is None else None

    def samples(self) -> Iterator[Sample | Rejected]:
        if self.captions is None:
            for path in self._images():
                name = path.relative_to(self.folder).as_posix()
                if is_encodable(name):
                    yield Sample(name, (name, None))
                else:
                    yield Rejected(name, "its name is not UTF-8")
            return
        if is_table(self.captions):
            columns = Table(self.captions).columns()
            self._require(columns, "--image-column", self.image_field, FILE_FIELDS)
            self._require(columns, "--caption-column", self.caption_field, CAPTION_FIELDS)
        for row in read_rows(self.captions):
            named = self._image_name(row.fields)
            if row.problem or named is None:
                yield Rejected(f"line {row.line}", row.problem or "it names no image")
            else:
                yield Sample(named, (named, find_caption(row.fields, self.caption_field)))

    def records(self, payload: tuple[str, Any]) -> Iterator[tuple[Record, str]]:
        name, caption = payload
        captions = caption_list(self._caption_file(name) if self.captions is None else caption)
        image = read_image(self.folder, name, self.options.images)
        record_id = Path(name).with_suffix("").as_posix()
        yield from self.options.records(record_id, image, captions, {"file": name})

    def _images(self) -> list[Path]:
        if self._found is None:
            files = walk_files(self.folder)
            self._found = [path for path in files if is_image_name(path.name)]
            stems = {path.with_suffix("") for path in self._found}
            others = sum(
                not is_image_name(path.name)
                and not (path.suffix in _CAPTION_SUFFIXES and path.with_suffix("") in stems)
                for path in files
            )
            self._skipped = {"files that are neither images nor captions": others} if others else {}
        return self._found

    def _caption_file(self, name: str) -> Any:
        """The caption in the file next to an image."""
        for suffix in _CAPTION_SUFFIXES:
            if (file := (self.folder / name).with_suffix(suffix)).is_file():
                text = utf8_text(read_file(file, LARGEST_TEXT_FILE), suffix)
                is_json = suffix == ".json"
                return find_caption(json_value(text, suffix), self.caption_field) if is_json else text
        raise RecordError("no caption next to it (.txt, .caption or .json)")

    def _image_name(self, row: Mapping[str, Any]) -> str | None:
        names = FILE_FIELDS if self.image_field is None else (self.image_field,)
        found = next((row[name] for name in names if row.get(name)), None)
        return found if isinstance(found, str) else None

    def _require(self, columns: list[str], option: str, name: str | None, usual: tuple[str, ...]) -> None:
        if not set(columns) & ({name} if name else set(usual)):
            missing = f"'{name}'" if name else f"named {', '.join(usual)}"
            raise UserError(
                f"{self.captions} has no column {missing}: give {option} as one of {', '.join(columns)}."
            )
