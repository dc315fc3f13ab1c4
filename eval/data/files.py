"""Readers of the official files of tasks; every mistake in one is a line that names the file and the row."""

import base64
import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ...common.errors import ImageError, UserError, first_line, shown
from ...common.json_files import read_json, read_json_lines
from ...common.packages import missing_package
from ...common.paths import regular_file
from .encoded_image import EncodedImage

ImageSource = Path | Image.Image
T = TypeVar("T")
# Images in base64 are fields of megabytes; csv's own limit is 128 KB.
_FIELD_LIMIT = 1 << 30


class MissingData(UserError):
    """None of the files of a task, or of one of its splits, are there."""


class Row(dict[str, Any]):
    """The fields of one question; `row[name]` raises UserError for one that is missing or null.

    Args:
        values: the fields by name; UserError for anything that is not an object.
        where: names the row in messages: "FILE, line 3".
        key: id of the row in its file, else its number from 0.
        images: images of the question, where the file holds them.
    """

    def __init__(self, values: Any, where: str, key: str = "", images: tuple[ImageSource, ...] = ()) -> None:
        if not isinstance(values, dict):
            raise UserError(f"{where} holds {shown(values)}; expected an object with named fields")
        super().__init__(values)
        self.where, self.key, self.images = where, key, images

    def __getitem__(self, name: str) -> Any:
        if (value := self.get(name)) is None:
            raise UserError(f"{self.where} has no field {name!r}; it has {shown(list(self), 120)}")
        return value


@contextmanager
def values_of(where: str) -> Iterator[None]:
    """Turn any error caused by a value of the wrong type into a UserError that begins with `where`."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: a value is of the wrong type ({reason})") from error


def parse_rows(rows: Iterable[Row], parse: Callable[[Row], T]) -> list[T]:
    """`parse` of every row. UserError that names the file and the row whose values it cannot take."""
    parsed = []
    for row in rows:
        with values_of(row.where):
            parsed.append(parse(row))
    return parsed


def json_rows(path: Path, *within: str, image: Callable[[Row], ImageSource] | None = None) -> Iterator[Row]:
    """Entries of a JSON file, which holds them as a list or as an object by id.

    Args:
        path: the file.
        within: names of the nested fields in which the entries are.
        image: the image of an entry.
    """
    entries = read_json(path)
    for name in within:
        entries = Row(entries, str(path))[name]
    if not isinstance(entries, dict | list):
        raise UserError(f"{path} holds {shown(entries)}; expected a list or an object of questions")
    for key, values in entries.items() if isinstance(entries, dict) else enumerate(entries):
        row = Row(values, f"{path}, entry {shown(key)}", str(key))
        if image is not None:
            with values_of(row.where):
                row.images = (image(row),)
        yield row


def json_line_rows(path: Path, needed: Sequence[str] = ()) -> Iterator[Row]:
    """Objects of a JSON lines file. UserError, with the line, for one that lacks a field of `needed`."""
    for number, values in enumerate(read_json_lines(path, needed)):
        yield Row(values, f"{path}, entry {number}", str(number))


def read_tsv(path: Path, needed: Sequence[str], **dialect: Any) -> Iterator[Row]:
    """Rows of a table in UTF-8 with a header, quoted as by pandas. Empty and "nan" cells are "".

    Args:
        path: the file.
        needed: columns that must be there.
        dialect: other options of `csv.reader`, such as delimiter="," for a CSV.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    with regular_file(path, "the file").open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, **{"delimiter": "\t", **dialect})
        rows = iter(reader)
        try:
            _need_columns(path, needed, reader.fieldnames or [])
            while (row := next(rows, None)) is not None:
                cells = {
                    key: "" if value in (None, "nan") else value
                    for key, value in row.items()
                    if key is not None
                }
                yield Row(cells, f"{path}, line {reader.line_num}")
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as a table in UTF-8: {first_line(error)}") from None


def parquet_files(folder: Path, pattern: str) -> list[Path]:
    """The parquet shards of a split in a folder, in order; UserError if there are none."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise MissingData(f"{folder} holds no {pattern}; put the dataset's parquet files there as they are")
    return paths


def read_parquet(paths: Sequence[Path], needed: Sequence[str]) -> Iterator[Row]:
    """Rows of parquet shards, numbered through all of them. UserError for a missing column of `needed`."""
    try:
        import pyarrow.parquet as parquet
        from pyarrow.lib import ArrowException
    except ImportError as error:
        raise UserError(missing_package("pyarrow")) from error
    number = 0
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
            _need_columns(path, needed, file.schema_arrow.names)
            batches = file.iter_batches(batch_size=64)
            while (batch := next(batches, None)) is not None:
                for values in batch.to_pylist():
                    yield Row(values, f"{path}, row {number}", str(number))
                    number += 1
        except (OSError, ArrowException) as error:
            raise UserError(f"{path} is not a complete parquet file ({first_line(error)})") from error


def image_rows(
    folder: Path, pattern: str, needed: Sequence[str], column: str = "image", optional: bool = False
) -> Iterator[Row]:
    """Rows of the parquet shards of a split, with the image of `column` in place of that field.

    A table repeats an image for every question about it; equal images are kept once. Of a list of images
    (the frames of a video) the first is taken. With `optional`, a row with an empty cell has no image.
    """
    kept: dict[bytes, Image.Image] = {}
    for row in read_parquet(parquet_files(folder, pattern), (*needed, column)):
        cell = row.pop(column)
        if isinstance(cell, list):
            cell = cell[0] if cell else None
        if cell is not None or not optional:
            content = cell.get("bytes") if isinstance(cell, Mapping) else cell
            key = hashlib.sha256(content).digest() if isinstance(content, bytes) else b""
            if key not in kept:
                kept[key] = image_from_cell(cell, row.where)
            row.images = (kept[key],)
        yield row


def image_from_base64(text: str, where: str) -> Image.Image:
    """An image in base64, decoded when used; UserError that begins with `where` for anything else."""
    try:
        return EncodedImage(base64.b64decode(text))
    except ImageError as error:
        raise UserError(f"{where}: it {error}") from error
    except ValueError as error:
        raise UserError(f"{where}: not base64 ({first_line(error)})") from error


def image_from_cell(cell: Any, where: str) -> Image.Image:
    """An image in a parquet cell, {"bytes": …, "path": …}, decoded when used."""
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if not isinstance(content, bytes):
        raise UserError(
            f"{where}: the parquet cell holds no image bytes; use the dataset with its images embedded"
        )
    try:
        return EncodedImage(content)
    except ImageError as error:
        raise UserError(f"{where}: it {error}") from error


def image_folder(root: Path, *names: str) -> Path:
    """The first of the folders `names` that exists in `root`, else the first name (to be reported)."""
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def _need_columns(path: Path, needed: Sequence[str], columns: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in columns]:
        raise UserError(f"{path} has no column {', '.join(missing)}; it has {shown(list(columns), 120)}")
