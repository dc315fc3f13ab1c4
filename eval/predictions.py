"""Predictions on disk: append-only JSON lines, one file for each rank, then one for all.

A line is {"id": ..., "prediction": ...}. Lines are written whole and at once; what a killed run left torn at
the end of a file is dropped. The same id twice, or one that the benchmark does not have, is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import atomic_file

MERGED = "predictions.jsonl"
PART = "part-{rank:05}-of-{world:05}.jsonl"


class PredictionWriter:
    """Appends to one rank's file; use it as a context manager."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self.path = folder / PART.format(rank=rank, world=world)
        _drop_torn_line(self.path)

    def __enter__(self) -> PredictionWriter:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write(self, predictions: Mapping[str, Any]) -> None:
        """Add predictions by id; they are on disk when this returns."""
        lines = [json.dumps({"id": key, "prediction": value}) for key, value in predictions.items()]
        self._file.write("".join(line + "\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())


def read_predictions(folder: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Every prediction made so far, by any number of ranks, in the order of `ids`.

    Raises:
        UserError: an id twice or unknown, or a line that is no prediction; names file and line.
    """
    merged = folder / MERGED
    try:
        paths = [merged] if merged.exists() else sorted(folder.glob("part-*.jsonl"))
        entries = [entry for path in paths for entry in _lines(path)]
    except FileNotFoundError:  # another rank has put the parts together meanwhile
        return read_predictions(folder, ids)
    known, found = set(ids), dict[str, Any]()
    for where, key, prediction in entries:
        if key not in known:
            raise UserError(f"{where}: the benchmark has no item {key!r}; give another --output")
        if key in found:
            raise UserError(f"{where}: item {key!r} is predicted twice; remove one of the two lines")
        found[key] = prediction
    return {key: found[key] for key in ids if key in found}


def merge_predictions(folder: Path, ids: Sequence[str]) -> bool:
    """Once every item has its prediction, write them in order to one file; says whether they are complete.

    Any rank may be the last one, and each that finds itself to be writes the same bytes.
    """
    predictions = read_predictions(folder, ids)
    if len(predictions) < len(ids):
        return False
    with atomic_file(folder / MERGED) as partial:
        partial.write_text(
            "".join(
                json.dumps({"id": key, "prediction": value}) + "\n" for key, value in predictions.items()
            ),
            encoding="utf-8",
        )
    for part in folder.glob("part-*.jsonl"):
        part.unlink(missing_ok=True)
    return True


def _lines(path: Path) -> Iterator[tuple[str, str, Any]]:
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    # What stands after the last line's end was torn by a kill, or is still being written by another rank.
    for number, line in enumerate(lines[:-1], start=1):
        where = f"{path}, line {number}"
        try:
            entry = json.loads(line)
            yield where, str(entry["id"]), entry["prediction"]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{where} is no prediction; remove the line, and run again") from None


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
