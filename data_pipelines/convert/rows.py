"""Read the rows of JSON, JSON lines, CSV and TSV files from any source; broken rows are skipped alone."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ...common.errors import UserError, shown
from ...common.json_files import JsonError, bounded_lines, is_encodable, json_list, parse_json

TABLES = (".csv", ".tsv")
#: Bytes of a JSON list, which is read at once; JSON lines may have any length.
LARGEST_LIST = 4_000_000_000
#: Characters of one line, and lines of one quoted field.
_LONGEST_LINE = 10_000_000
_MOST_LINES = 1000


@dataclass(frozen=True)
class Row:
    """A row by its columns, or the `problem` of a broken one.

    `line` is its first line, from 1; in a JSON list it is the number of the entry.
    """

    line: int
    fields: dict[str, Any]
    problem: str = ""


def is_table(path: Path) -> bool:
    """Whether a file is CSV or TSV, by its suffix."""
    return path.suffix.lower() in TABLES


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a table, or the objects of a JSON list or of JSON lines."""
    if is_table(path):
        yield from Table(path).rows()
        return
    for number, entry in enumerate(read_entries(path), start=1):
        if isinstance(entry, JsonError):
            yield Row(number, {}, f"it is not JSON: {entry}")
        elif not isinstance(entry, dict):
            yield Row(number, {}, f"it is {shown(entry)}, not a JSON object")
        else:
            yield Row(number, entry)


def read_entries(path: Path) -> Iterator[Any]:
    """The entries of a JSON list or of JSON lines, with a JsonError in place of each unusable one.

    Errors:
        UserError for a list with broken syntax, or of more than LARGEST_LIST bytes.
    """
    if not is_json_list(path):
        with path.open("rb") as file:
            yield from (_parsed(line) for line in bounded_lines(file) if line is None or line.strip())
        return
    if (size := path.stat().st_size) > LARGEST_LIST:
        raise UserError(f"--input {path} is a JSON list of {size} bytes: write one entry per line instead")
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    try:
        yield from json_list(text)
    except JsonError as error:
        raise UserError(f"--input {path} is not valid JSON: {error}") from error


def is_json_list(path: Path) -> bool:
    """Whether the first character other than white space opens a list."""
    with path.open("rb") as file:
        start = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf")
        while start and not start.strip():
            start = file.read(1 << 16)
    return start.strip().startswith(b"[")


def _parsed(line: bytes | None) -> Any:
    try:
        return JsonError("a line too long to be read") if line is None else parse_json(line)
    except JsonError as error:
        return JsonError(f"{error}; give one JSON list, or one entry per line")


class Table:
    """A CSV or TSV file whose first row names the columns. Bytes that are not UTF-8 become surrogates."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","

    def columns(self) -> list[str]:
        """The names of the columns. UserError where the first row is missing, broken or not UTF-8."""
        _, columns, problem = next(self._rows(), (1, [], "the file is empty"))
        if not problem and (not is_encodable("".join(columns)) or "\0" in "".join(columns)):
            problem = "it is not UTF-8: save the file as UTF-8"
        if problem:
            raise UserError(f"the first line of {self.path} names no columns: {problem}")
        return columns

    def rows(self) -> Iterator[Row]:
        """All rows after the first."""
        rows = self._rows()
        _, columns, _ = next(rows, (1, [], ""))
        for line, fields, problem in rows:
            if len(fields) > len(columns):  # most often a comma without quotes
                problem = f"it has {len(fields)} cells, the first line has {len(columns)}"
            yield Row(line, dict(zip(columns, fields, strict=False)), problem)

    def _rows(self) -> Iterator[tuple[int, list[str], str]]:
        csv.field_size_limit(_LONGEST_LINE)
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = _Lines(file)
            while (start := lines.peek()) is not None:
                number = lines.number + 1
                if len(start) > _LONGEST_LINE:
                    lines.skip_line()
                    yield number, [], f"a line of more than {_LONGEST_LINE} characters"
                    continue
                fields, problem = self._row(lines)
                if fields or problem:
                    yield number, fields, problem

    def _row(self, lines: _Lines) -> tuple[list[str], str]:
        """(fields, problem) of the next row; where its quotes do not match it ends with its first line."""
        taken: list[str] = []

        def feed() -> Iterator[str]:
            while len(taken) < _MOST_LINES and (line := lines.next()) is not None:
                taken.append(line)
                yield line

        try:
            return next(csv.reader(feed(), delimiter=self._delimiter, strict=True)), ""
        except csv.Error as error:
            # Text after a closing quote on the same line, which some programs write.
            if len(taken) == 1 and "expected after" in str(error):
                return next(csv.reader(iter(taken), delimiter=self._delimiter)), ""
            lines.put_back(taken[1:])
            return [], f"a quote that is not closed, or a field too long ({error})"


class _Lines:
    """The lines of a file, which can be put back."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._waiting: deque[str] = deque()
        self.number = 0

    def peek(self) -> str | None:
        if not self._waiting:
            if not (line := self._file.readline(_LONGEST_LINE + 1)):
                return None
            self._waiting.append(line)
        return self._waiting[0]

    def next(self) -> str | None:
        line = self.peek()
        if line is not None:
            self._waiting.popleft()
            self.number += 1
        return line

    def skip_line(self) -> None:
        """Skip a line that has been read in part."""
        line = self.next()
        while line and not line.endswith(("\n", "\r")):
            line = self._file.readline(_LONGEST_LINE)

    def put_back(self, lines: list[str]) -> None:
        self._waiting.extendleft(reversed(lines))
        self.number -= len(lines)
