"""Reading the official files of tasks. Every mistake in them is one clear line that names the file."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ...common.errors import ImageError, UserError, first_line, shown
from ...common.packages import missing_package
from ...common.paths import regular_file
from ..harness.task import MissingData
from .encoded_image import EncodedImage

# Images in base64 are fields of megabytes; csv's own limit is 128 KB.
_FIELD_LIMIT = 1 << 30


def read_tsv(path: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a TSV with a heading, quoted as by pandas. Empty and "nan" cells are "".

    UserError if a column of `needed` is missing.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    with regular_file(path, "the file").open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        rows = iter(reader)
        try:
            missing = [name for name in needed if name not in (reader.fieldnames or [])]
            if missing:
                raise UserError(f"{path} has no column {', '.join(missing)}; it has {reader.fieldnames}")
            while (row := next(rows, None)) is not None:
                yield {
                    key: "" if value is None or value == "nan" else value
                    for key, value in row.items()
                    if key is not None
                }
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read as a TSV in UTF-8: {first_line(error)}") from None


def parquet_files(folder: Path, pattern: str) -> list[Path]:
    """The parquet shards of a split below a folder, in order; UserError for none."""
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise MissingData(f"{folder} holds no {pattern}; put the dataset's parquet files there as they are")
    return paths


def read_parquet(paths: Sequence[Path], needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of parquet shards as plain Python values. UserError if a column of `needed` is missing."""
    try:
        import pyarrow.parquet as parquet
        from pyarrow.lib import ArrowException
    except ImportError as error:
        raise UserError(missing_package("pyarrow")) from error
    for path in paths:
        try:
            file = parquet.ParquetFile(path)
            missing = [name for name in needed if name not in file.schema_arrow.names]
            if missing:
                has = shown(file.schema_arrow.names, 120)
                raise UserError(f"{path} has no column {', '.join(missing)}; it has {has}")
            batches = file.iter_batches(batch_size=64)
            while (batch := next(batches, None)) is not None:
                yield from batch.to_pylist()
        except (OSError, ArrowException) as error:
            raise UserError(f"{path} is not a complete parquet file ({first_line(error)})") from error


def image_from_bytes(content: bytes, what: str) -> Image.Image:
    """An image that is decoded when used; `what` names it in the message of one that is not."""
    try:
        return EncodedImage(content)
    except ImageError as error:
        raise UserError(f"{what}: it {error}") from error


def image_from_base64(text: str, what: str) -> Image.Image:
    """An image in base64, as TSV files hold it."""
    try:
        return image_from_bytes(base64.b64decode(text), what)
    except (binascii.Error, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{what}: not base64 ({first_line(error)})") from error


def image_from_cell(cell: Any, what: str) -> Image.Image:
    """An image in a parquet cell, {"bytes": …, "path": …}."""
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if not isinstance(content, bytes):
        raise UserError(
            f"{what}: the parquet cell holds no image bytes; use the dataset with its images embedded"
        )
    return image_from_bytes(content, what)


def image_rows(
    folder: Path, pattern: str, needed: Sequence[str], column: str = "image", optional: bool = False
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Rows of the parquet shards of a split, and the image that each holds in `column`.

    A table repeats an image for every question on it; equal images are kept once. Of a list of images (the
    frames of a video) it is the first. With `optional` the image of an empty cell is None.
    """
    kept: dict[bytes, Image.Image] = {}
    for number, row in enumerate(read_parquet(parquet_files(folder, pattern), (*needed, column))):
        cell = row[column]
        if isinstance(cell, list):
            cell = cell[0] if cell else None
        if cell is None and optional:
            yield row, None
            continue
        content = cell.get("bytes") if isinstance(cell, Mapping) else cell
        key = hashlib.sha256(content).digest() if isinstance(content, bytes) else b""
        if key not in kept:
            kept[key] = image_from_cell(cell, f"{folder}, row {number}")
        yield row, kept[key]


def image_folder(root: Path, *names: str) -> Path:
    """The first of the folders `names` that exists below `root`, else the first (to be reported)."""
    return next((root / name for name in names if (root / name).is_dir()), root / names[0])


def field(row: Mapping[str, Any], name: str, path: Path) -> Any:
    """A field of a row; UserError that names the file and the field if it is missing, or null."""
    if row.get(name) is None:
        raise UserError(f"{path}: a question has no field {name!r}; it has {shown(list(row), 120)}")
    return row[name]
