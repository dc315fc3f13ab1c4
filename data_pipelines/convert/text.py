"""Convert plain text: one record for each document, whose text is a single turn of the assistant.

Documents are the files of a folder, the lines of a file, or the rows of a data set with a column of text.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ...common.arguments import integer, share
from ...common.errors import UserError
from ...common.json_files import bounded_lines
from ...common.paths import regular_file, user_path
from ...common.values import finite_number, one_of, whole_number
from ..records import Record, RecordError, assistant
from .foreign_values import optional_text, required_text
from .hf_datasets import Dataset
from .row_converter import RowsConverter
from .samples import LARGEST_TEXT_FILE, add_licence_argument, files_fingerprint, read_file, stable_fraction
from .samples import utf8_text as decoded

TEXT_COLUMNS: tuple[str, ...] = ("text", "content", "raw_content", "document", "body")
DOCUMENTS: tuple[str, ...] = ("file", "line")
#: Where a long document is cut, the best place first.
_BORDERS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?。！？])\s"), re.compile(r"\s"))
_TEXT_FILES = (".txt", ".text")
_DATA_FILES = (".parquet", ".json", ".jsonl", ".csv", ".tsv", ".arrow")


@dataclass
class TextConverter(RowsConverter):
    """The documents of text files, or of the column `column` (None: a usual name) of a data set.

    Args:
        documents: what is one document of a text file: the file, or each of its lines.
        longest: characters of a record; a longer document becomes several records, cut at a paragraph, a
            line, a sentence or a word.
        shortest: characters of a document that is used.
        held_out: fraction of the documents in the split "heldout", by their names.
    """

    kind = "text"
    summary = "plain text: text files, or rows with a column of text (hub id, parquet, JSON lines, CSV)"
    example = """dualtoken prepare text --input books --output data/books
  dualtoken prepare text --input HuggingFaceFW/fineweb-edu --config sample-10BT --output data/web"""

    column: str | None = None
    documents: str = "file"
    longest: int = 100_000
    shortest: int = 1
    held_out: float = 0.0
    licence: str = "unknown"

    def __post_init__(self) -> None:
        one_of(self.documents, "--documents", DOCUMENTS)
        whole_number(self.longest, "--longest", 100, 4_000_000)
        whole_number(self.shortest, "--shortest", 1, 10**9)
        finite_number(self.held_out, "--held-out", 0.0, below=1.0)
        if files := _text_files(user_path(self.path)):
            self.name = user_path(self.path).name
            self._data = _of_files(files, user_path(self.path), self.documents)
            self.column = "text"
            self.id_column: str | None = "id"
            return
        super().__post_init__()
        known = self.data.columns
        self.column = self.column or next((name for name in TEXT_COLUMNS if name in known), None)
        if self.column not in known:
            raise UserError(
                f"which column holds the text? Give --text-column; the columns are {', '.join(known)}"
            )
        self.id_column = "id" if "id" in known else None
        if self.licence == "unknown" and self.data.licence:
            self.licence = self.data.licence

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        cls.add_row_arguments(parser, "; or a text file, or a folder of text files")
        add = parser.add_argument
        add("--text-column", help="column with the text (default: a usual name)")
        documents = "what is one document of a text file (default %(default)s)"
        add("--documents", choices=DOCUMENTS, default=cls.documents, help=documents)
        longest = "characters of a record; longer documents become several (default %(default)s)"
        add("--longest", type=integer(100, 4_000_000), default=cls.longest, help=longest)
        shortest = "characters of the shortest document (default %(default)s)"
        add("--shortest", type=integer(1), default=cls.shortest, help=shortest)
        add("--held-out", type=share, default=0.0, help="fraction for the split heldout (default 0)")
        add_licence_argument(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> TextConverter:
        return cls(
            **cls.row_arguments(args),
            column=args.text_column,
            documents=args.documents,
            longest=args.longest,
            shortest=args.shortest,
            held_out=args.held_out,
            licence=args.licence,
        )

    def settings(self) -> dict[str, Any]:
        names = ("column", "documents", "longest", "shortest", "held_out")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    def columns_read(self) -> list[str]:
        return [name for name in (self.column, self.id_column) if name is not None]

    def records(self, payload: tuple[int, dict[str, Any]]) -> Iterator[tuple[Record, str]]:
        number, row = payload
        name = optional_text(row.get("id"), "id") or f"{self.split}-{number}"
        text = required_text(row[str(self.column)], str(self.column))
        if len(text) < self.shortest:
            raise RecordError(f"it has {len(text)} characters, fewer than --shortest {self.shortest}")
        split = "heldout" if stable_fraction(name) < self.held_out else "train"
        pieces = split_at_borders(text, self.longest)
        for part, piece in enumerate(pieces):
            record_id = name if len(pieces) == 1 else f"{name}-{part}"
            yield Record(record_id, [assistant(piece)], {"task": "text"}), split


def split_at_borders(text: str, longest: int) -> list[str]:
    """Pieces of at most `longest` characters; together they are the text, without space at the cuts."""
    pieces = []
    while len(text) > longest:
        cut = _cut(text, longest)
        pieces.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return [piece for piece in (*pieces, text) if piece]


def _cut(text: str, longest: int) -> int:
    """Where to cut: after the last of the best borders in the second half of the allowed length."""
    for border in _BORDERS:
        ends = [found.end() for found in border.finditer(text, longest // 2, longest)]
        if ends:
            return ends[-1]
    return longest


def _text_files(path: Path) -> list[Path]:
    """A text file, or those of a folder and its folders; none where it is another data set."""
    if path.suffix.lower() in _TEXT_FILES and path.is_file():
        return [regular_file(path, "--input")]
    if not path.is_dir():
        return []
    files = sorted(one for one in path.rglob("*") if one.is_file())
    if any(one.suffix.lower() in _DATA_FILES for one in files):  # a licence next to the data is none of them
        return []
    return [one for one in files if one.suffix.lower() in _TEXT_FILES]


def _of_files(files: list[Path], path: Path, documents: str) -> Dataset:
    """The documents of text files as rows with the columns id and text."""
    root = path if path.is_dir() else path.parent
    read_one = partial(_lines, root) if documents == "line" else partial(_whole, root)

    def read(used: Any, start: int) -> Iterator[dict[str, Any] | str]:
        if documents == "file":
            yield from chain.from_iterable(map(read_one, files[start:]))
            return
        for number, row in enumerate(chain.from_iterable(map(read_one, files))):
            if number >= start:
                yield row

    total = len(files) if documents == "file" else None
    return Dataset(["id", "text"], read, total=total, fingerprint=files_fingerprint(files, root))


def _whole(root: Path, path: Path) -> Iterator[dict[str, Any] | str]:
    name = path.relative_to(root).as_posix()
    try:
        yield {"id": name, "text": decoded(read_file(path, LARGEST_TEXT_FILE), "text")}
    except RecordError as error:
        yield f"{name}: {error}"


def _lines(root: Path, path: Path) -> Iterator[dict[str, Any] | str]:
    name = path.relative_to(root).as_posix()
    with path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file), start=1):
            if line is None:
                yield f"{name}, line {number}: a line too long to be read"
            elif line.strip():
                try:
                    yield {"id": f"{name}-{number}", "text": decoded(line, "text")}
                except RecordError as error:
                    yield f"{name}, line {number}: {error}"
