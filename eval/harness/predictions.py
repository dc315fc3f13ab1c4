"""Predictions on disk: append-only JSON lines, one file for each rank, then one for all.

A line is {"id": ..., "prediction": ...}, with null for an item that could not be asked. Lines are written at
once; an incomplete line that a killed run left at the end of a file is dropped. An id that occurs twice, or
that the task does not have, is refused.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ...common.errors import UserError, shown
from ...common.files import write_text
from ...common.json_files import JsonError, enumerate_lines, parse_json, read_text
from ...common.paths import inside
from .task import Item

MERGED = "predictions.jsonl"
PART = "part-{rank:05}-of-{world:05}.jsonl"


class PredictionWriter:
    """Appends to one rank's file; use it as a context manager."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        self.path = folder / PART.format(rank=rank, world=world)
        if self.path.exists():  # a killed run may leave an incomplete line at the end
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)

    def __enter__(self) -> Self:
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write(self, predictions: Mapping[str, Any]) -> None:
        """Add predictions by id; they are on disk when this returns."""
        self._file.write(_as_lines(predictions))
        self._file.flush()
        os.fsync(self._file.fileno())


def read_predictions(folder: Path, ids: Sequence[str]) -> dict[str, Any]:
    """All predictions made so far, by any number of ranks, in the order of `ids`.

    UserError, naming file and line, for an id that is unknown or occurs twice, and for an invalid line.
    """
    merged, parts = folder / MERGED, sorted(folder.glob("part-*.jsonl"))
    before = list(_lines(merged)) if merged.exists() else []
    try:
        added = [entry for path in parts for entry in _lines(path)]
    except FileNotFoundError:  # another rank has merged the parts meanwhile
        return read_predictions(folder, ids)
    # A run that was killed while it merged the parts leaves the same predictions in both.
    merged_texts = {key: json.dumps(prediction) for _, key, prediction in before}
    added = [entry for entry in added if merged_texts.get(entry[1]) != json.dumps(entry[2])]
    known, found = set(ids), dict[str, Any]()
    for where, key, prediction in (*before, *added):
        if key not in known:
            raise UserError(f"{where}: the task has no item {shown(key)}; give another --output")
        if key in found:
            raise UserError(f"{where}: item {shown(key)} is predicted twice; remove one of the two lines")
        found[key] = prediction
    return {key: found[key] for key in ids if key in found}


def check_predictions(kind: str, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> None:
    """UserError for a prediction that a task of this kind cannot score.

    Valid are a string ("answer"), a finite number for each choice ("choose"), both also null, and names of
    images in `folder` ("image").
    """
    for item in items:
        given = predictions.get(item.id)
        if item.id not in predictions or (given is None and kind != "image"):
            continue
        if kind == "answer":
            right = isinstance(given, str)
        elif kind == "choose":
            right = _is_numbers(given, len(item.choices))
        else:
            names = [given] if isinstance(given, str) else given
            right = isinstance(names, list) and all(inside(folder, name, "the image") for name in names)
        if not right:
            raise UserError(
                f"{folder}: the prediction of item {shown(item.id)} is {shown(given)}, which has no "
                "score; remove its line and predict again"
            )


def merge_predictions(folder: Path, ids: Sequence[str]) -> bool:
    """Write the predictions in order to one file if every item has one; returns whether that is so.

    Several ranks may find them complete at the same time; they write the same bytes.
    """
    predictions = read_predictions(folder, ids)
    if len(predictions) < len(ids):
        return False
    write_text(folder / MERGED, _as_lines(predictions))
    for part in folder.glob("part-*.jsonl"):
        part.unlink(missing_ok=True)
    return True


def _as_lines(predictions: Mapping[str, Any]) -> str:
    return "".join(json.dumps({"id": key, "prediction": one}) + "\n" for key, one in predictions.items())


def _lines(path: Path) -> Iterator[tuple[str, str, Any]]:
    try:
        text = read_text(path)
    except UserError:
        if not path.exists():
            raise FileNotFoundError(path) from None
        raise
    # A line without an end was cut off by a kill, or is still being written by another rank.
    for number, line in enumerate_lines(text[: text.rfind("\n") + 1]):
        where = f"{path}, line {number}"
        try:
            entry = parse_json(line)
        except JsonError:
            entry = None
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or "prediction" not in entry:
            raise UserError(f"{where} is not a prediction; remove the line, and run again")
        yield where, entry["id"], entry["prediction"]


def _is_numbers(given: Any, count: int) -> bool:
    if not isinstance(given, list) or len(given) != count:
        return False
    return all(type(value) in (int, float) and math.isfinite(value) for value in given)
