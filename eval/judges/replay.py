"""What a judge said of predictions, in a file beside them: made elsewhere, or by the local judge."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.files import atomic_file
from ...common.json_files import read_json

Rows = Mapping[str, Mapping[str, Any]]


def replay_path(folder: Path, benchmark: str) -> Path:
    """Where the judge's file of a benchmark is looked for."""
    return folder / f"{benchmark}-judge.json"


def read_replay(folder: Path, benchmark: str) -> dict[str, dict[str, Any]]:
    """What the judge said, by item id; empty without a file. UserError for a file of another form."""
    path = replay_path(folder, benchmark)
    return read_rows(path) if path.exists() else {}


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a judge's file. UserError if it has another form or cannot be read."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UserError(
            f"{path} must be one JSON object of objects by item id, as the official judge writes it"
        )
    return content


def place_replay(folder: Path, benchmark: str, file: Path) -> None:
    """Put a judge's file where it is looked for. UserError if another one is there, or it is none."""
    read_rows(file)
    path, content = replay_path(folder, benchmark), file.read_bytes()
    if path.exists() and path.read_bytes() != content:
        raise UserError(f"{path} is there already and differs from {file}; move it away first")
    with atomic_file(path) as partial:
        partial.write_bytes(content)


def judge_facts(folder: Path, benchmark: str) -> dict[str, Any] | None:
    """The judge's file with its checksum, and the models that it names; None without a file."""
    path = replay_path(folder, benchmark)
    if not path.exists():
        return None
    models: set[str] = set()
    for row in read_rows(path).values():
        named = row.get("model", [])
        models.update(map(str, named if isinstance(named, list) else [named]))
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"file": path.name, "checksum": checksum, "models": sorted(models)}


def why_no_judge(folder: Path, benchmark: str, wanted: Iterable[str], rows: Rows, field: str) -> str | None:
    """The reason why the judge's part has no figure; None if `rows` have a verdict on all items wanted.

    A row without `field` is a reply that holds no verdict.
    """
    ids = list(wanted)
    missing = sum(key not in rows for key in ids)
    silent = sum(key in rows and rows[key].get(field) is None for key in ids)
    path = replay_path(folder, benchmark)
    if missing and not path.exists():
        return f"{missing} answers need a judge and there is no {path.name} beside the predictions"
    if missing:
        return f"{path.name} lacks {missing} of the {len(ids)} answers that need a judge"
    if silent:
        return f"{path.name}: {silent} of {len(ids)} replies of the judge hold no verdict"
    return None
