"""Open one split of a data set: on the hub, saved by `datasets`, or in files of parquet, JSON or CSV.

No script of a data set is ever run, and a missing split is never replaced by another.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from ...common.errors import UserError, first_line, one_line, shown
from ...common.packages import missing_package
from ...common.paths import regular_file, user_path
from .rows import TABLES, read_rows
from .samples import Rejected, files_fingerprint

#: Names of splits in file names; those of one line are synonyms.
_SPLIT_WORDS = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
_SHARD_NAME = re.compile(r"(?:^|/)([^/]+)-\d{5}-of-\d{5}\.parquet$")
#: Seconds within which the hub has to answer.
_TIMEOUT = 5.0
_FIRST_ROWS = 100  # of JSON, from which the columns are known
_PARQUET_ROWS = 64  # read at once; a row may hold images

Row = dict[str, Any]


@dataclass(frozen=True)
class Dataset:
    """An opened split.

    seeks: whether reading from a later row is fast.
    read: (columns, start) → the rows from number `start` on, with encoded images; a string is the reason why
    a row cannot be read. damaged: files that cannot be read. licence, total: where they are known.
    """

    columns: list[str]
    read: Callable[[Sequence[str], int], Iterator[Row | str]]
    damaged: list[Rejected] = field(default_factory=list)
    total: int | None = None
    licence: str | None = None
    fingerprint: str = ""
    seeks: bool = False


def open_dataset(path: str, config: str | None, split: str, revision: str | None, streaming: bool) -> Dataset:
    """Open one split. UserError where it is missing, naming the available splits, or cannot be read."""
    local = user_path(path)
    is_local = os.path.lexists(local)
    if not is_local and _is_path(path):
        raise UserError(f"--input {path} does not exist: give a file, a folder or a hub id (owner/name)")
    try:
        if is_local:
            return _open_local(local, config, split)
        import datasets

        _notice_offline()
        rows = datasets.load_dataset(path, config, split=split, revision=revision, streaming=streaming)
        known = (rows.info.splits or {}).get(split)
        total = known.num_examples if known is not None else None
        facts = f"{path} {config} {split} {revision}"
        return _of_library(rows, total=total or None, licence=rows.info.license, fingerprint=facts)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise UserError(missing_package(error.name or "datasets")) from None
    except Exception as error:  # file systems and formats have no common exception
        raise UserError(
            f"--input {path} (config {config}, split {split}) cannot be opened as a Hugging Face data set: "
            f"{first_line(error)}"
        ) from error


def _notice_offline() -> None:
    """Let the libraries use their caches where the hub cannot be reached, instead of retrying."""
    import datasets
    from huggingface_hub import constants

    hub = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    try:
        socket.create_connection((hub.hostname or "", hub.port or 443), timeout=_TIMEOUT).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True


def _is_path(path: str) -> bool:
    """Whether this cannot be a hub id, which has at most one / and no suffix of a data file."""
    named_file = Path(path).suffix in (*TABLES, ".parquet")
    return named_file or path.startswith((".", "/", "~")) or path.count("/") > 1


def _open_local(path: Path, config: str | None, split: str) -> Dataset:
    if not path.is_dir():
        regular_file(path, "--input")
        if config is not None:
            raise UserError(f"--config {shown(config)} belongs to a hub id or a folder; {path} is a file")
    if path.suffix.lower() in (".json", ".jsonl", *TABLES):
        split_files([path], path, split)
        return _open_text(path)
    if files := [path] if path.suffix == ".parquet" else sorted(path.rglob("*.parquet")):
        return _open_parquet(split_files(files, path, split), path, split)
    import datasets

    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise UserError(f"{path} has no split {shown(split)}: it has {', '.join(saved)}")
            saved = saved[split]
        facts = files_fingerprint(sorted(path.rglob("*")), path)
        return _of_library(saved, total=len(saved), licence=saved.info.license, fingerprint=facts)
    if path.is_file() and path.suffix != ".arrow":
        raise UserError(
            f"--input {path}: give a file of .parquet, .json, .jsonl, .csv, .tsv or .arrow, or a folder"
        )
    if path.is_dir():
        rows = datasets.load_dataset(str(path), config, split=split, streaming=True)
        facts = files_fingerprint(sorted(path.rglob("*")), path)
        return _of_library(rows, licence=rows.info.license, fingerprint=facts)
    rows = datasets.load_dataset("arrow", data_files=str(path), split="train", streaming=True)
    return _of_library(rows, fingerprint=files_fingerprint([path]))


def split_files(files: Sequence[Path], path: Path, split: str) -> list[Path]:
    """The files at `path` whose names contain the split; for "train" all when no name contains any split.

    A single file that was given by its name is also accepted as "train".

    Errors:
        UserError for a missing split.
    """
    if path.is_file() and split == "train":
        return list(files)
    names = {file: file.name if file == path else file.relative_to(path).as_posix() for file in files}
    words = {file: set(re.split(r"[-_./]", name)) for file, name in names.items()}
    wanted = next((set(group) for group in _SPLIT_WORDS if split in group), {split})
    if named := [file for file in files if words[file] & wanted]:
        return named
    known = {word for group in _SPLIT_WORDS for word in group}
    named_splits = {word for found in words.values() for word in found & known}
    named_splits |= {found[1] for name in names.values() if (found := _SHARD_NAME.search(name))}
    if not named_splits and split == "train":
        return list(files)
    found_splits = ", ".join(sorted(named_splits)) or "no split, so all are 'train'"
    raise UserError(f"{path} has no split {shown(split)}: its file names contain {found_splits}")


def _open_parquet(files: list[Path], path: Path, split: str) -> Dataset:
    import pyarrow
    from pyarrow import parquet

    readable: dict[Path, list[int]] = {}
    columns: dict[str, None] = {}
    damaged: list[Rejected] = []
    for file in files:
        try:
            about = parquet.read_metadata(file)
            columns.update(dict.fromkeys(about.schema.to_arrow_schema().names))
            groups = [about.row_group(number).num_rows for number in range(about.num_row_groups)]
            if min(groups, default=0) < 0 or sum(groups) != about.num_rows:
                raise OSError("its row groups do not add up")
            readable[file] = groups
        except (pyarrow.ArrowException, OSError) as error:
            damaged.append(Rejected(file.name, f"damaged parquet file ({one_line(error, 100)})"))
    if not readable:
        raise UserError(f"No parquet file in {path} can be read: {damaged[0].sample}: {damaged[0].reason}.")

    def read(used: Sequence[str], start: int) -> Iterator[Row | str]:
        for file, groups in readable.items():
            for group, rows in enumerate(groups):
                if start < rows:
                    yield from islice(parquet_rows(file, group, rows, used), start, None)
                start = max(0, start - rows)

    total = sum(map(sum, readable.values()))
    fingerprint = files_fingerprint(files, path if path.is_dir() else path.parent)
    return Dataset(list(columns), read, damaged, total, fingerprint=fingerprint, seeks=True)


def parquet_rows(file: Path, group: int, rows: int, used: Sequence[str]) -> Iterator[Row | str]:
    """The rows of one row group, or the reason for each one that cannot be read."""
    from pyarrow import parquet

    count = 0
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=sorted(set(used))):
                for number in range(batch.num_rows):
                    count += 1
                    yield _arrow_row(batch, number, used)
    except Exception as error:  # Arrow raises nearly anything at damaged pages
        reason = f"its part of {file.name} is damaged ({one_line(first_line(error), 100)})"
        yield from repeat(reason, rows - count)


def _arrow_row(batch: Any, number: int, used: Sequence[str]) -> Row | str:
    """The columns of one row, with null for those that its file lacks."""
    try:
        columns = zip(batch.schema.names, batch.columns, strict=True)
        return dict.fromkeys(used) | {name: column[number].as_py() for name, column in columns}
    except (ValueError, OverflowError) as error:  # dates outside of Python's range, bytes that are not UTF-8
        return f"it cannot be read ({first_line(error)})"


def _of_library(rows: Any, **facts: Any) -> Dataset:
    """Stream rows of `datasets` without decoding their images."""
    import datasets

    stream = rows.to_iterable_dataset() if isinstance(rows, datasets.Dataset) else rows
    stream = stream.decode(False)
    columns = stream.column_names if stream.column_names is not None else next(iter(stream), {})

    def read(used: Sequence[str], start: int) -> Iterator[Row | str]:
        return iter(stream.select_columns(list(used)).skip(start))

    return Dataset(list(columns), read, **facts)


def _open_text(path: Path) -> Dataset:
    """Open a file of JSON or CSV; broken rows are rejected alone, and columns may mix types."""
    columns: dict[str, None] = {}
    for row in islice(read_rows(path), _FIRST_ROWS):
        columns.update(dict.fromkeys(row.fields if not row.problem else ()))

    def read(used: Sequence[str], start: int) -> Iterator[Row | str]:
        for row in islice(read_rows(path), start, None):
            yield row.problem or {name: row.fields.get(name) for name in used}

    return Dataset(list(columns), read, fingerprint=files_fingerprint([path]))
