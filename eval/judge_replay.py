"""Grades of a judge that were made elsewhere, read from a file beside the predictions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..tokenizer.errors import UserError
from .json_lines import read_json


def replay_path(folder: Path, benchmark: str) -> Path:
    """Where the judge's file of a benchmark is looked for."""
    return folder / f"{benchmark}-judge.json"


def read_replay(folder: Path, benchmark: str) -> dict[str, dict[str, Any]]:
    """What the judge said, by item id; empty without a file. UserError for a file of another form."""
    path = replay_path(folder, benchmark)
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UserError(
            f"{path} must be one JSON object of objects by item id, as the official judge writes it"
        )
    return content


def why_no_judge(folder: Path, benchmark: str, wanted: Iterable[str], given: Iterable[str]) -> str | None:
    """The reason why the judge's part has no figure; None if all items it is wanted for are given."""
    ids = list(wanted)
    missing = len(set(ids) - set(given))
    if not missing:
        return None
    path = replay_path(folder, benchmark)
    if not path.exists():
        return f"{missing} answers need a judge and there is no {path.name} beside the predictions"
    return f"{path.name} lacks {missing} of the {len(ids)} answers that need a judge"
