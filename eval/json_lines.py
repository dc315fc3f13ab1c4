"""Reading text, JSON and JSON-lines files, with mistakes named by file and line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..tokenizer.errors import UserError, first_line


def read_json_lines(path: Path, fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a file, in order. UserError for a line that is none, or lacks one of `fields`."""
    rows = []
    # Not splitlines: texts in JSON may hold the other separators that it knows, such as U+2028.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({first_line(error)})") from error
        lost = [name for name in fields if not isinstance(row, dict) or name not in row]
        if lost or not isinstance(row, dict):
            raise UserError(f"{path}, line {number} has no field {', '.join(lost) or '(it is no object)'}")
        rows.append(row)
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file. UserError where it is none."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({first_line(error)})") from error


def read_text(path: Path) -> str:
    """A text file in UTF-8. UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
