"""A judge's recorded replies in the folder of the predictions, made by the local judge or another program."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ...common.errors import UserError
from ...common.files import atomic_file, file_checksum
from ...common.json_files import read_json


@dataclass(frozen=True)
class Verdicts:
    """The replies of a judge by item id, and the file that holds them; `rows` is None without a file."""

    path: Path = Path("judge.json")
    rows: Mapping[str, Mapping[str, Any]] | None = field(default=None, repr=False)

    @classmethod
    def read(cls, folder: Path, task: str) -> Self:
        """The replies on a task's predictions. UserError for a file of another format."""
        path = folder / f"{task}-judge.json"
        return cls(path, read_rows(path) if path.exists() else None)

    def get(self, key: str, name: str) -> Any:
        """A field of the reply on one item; None without a reply, or without a verdict in it."""
        return (self.rows or {}).get(key, {}).get(name)

    def why_incomplete(self, wanted: Collection[str], name: str) -> str | None:
        """The reason why the judge's metric is null; None if all items wanted have a verdict.

        A row without the field `name` is a reply without a verdict.
        """
        rows = self.rows or {}
        absent = sum(key not in rows for key in wanted)
        silent = sum(key in rows and rows[key].get(name) is None for key in wanted)
        file = self.path.name
        if absent and self.rows is None:
            return f"{absent} answers need a judge and there is no {file} in the folder of the predictions"
        if absent:
            return f"{file} lacks {absent} of the {len(wanted)} answers that need a judge"
        if silent:
            return f"{file}: {silent} of {len(wanted)} replies of the judge hold no verdict"
        return None

    def source(self) -> dict[str, Any] | None:
        """The file, its checksum, and the models that it names; None without a file."""
        if self.rows is None:
            return None
        models: set[str] = set()
        for row in self.rows.values():
            named = row.get("model", [])
            models.update(map(str, named if isinstance(named, list) else [named]))
        return {"file": self.path.name, "checksum": file_checksum(self.path), "models": sorted(models)}


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a judge's file. UserError if it has another format or cannot be read."""
    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UserError(f"{path} must be a JSON object of objects by item id, like the official judge's")
    return content


def place_replay(folder: Path, task: str, file: Path) -> None:
    """Copy a judge's file into a run's folder. UserError if a different one is there, or it is invalid."""
    read_rows(file)
    path, content = folder / f"{task}-judge.json", file.read_bytes()
    if path.exists() and path.read_bytes() != content:
        raise UserError(f"{path} is there already and differs from {file}; move it away first")
    with atomic_file(path) as partial:
        partial.write_bytes(content)
