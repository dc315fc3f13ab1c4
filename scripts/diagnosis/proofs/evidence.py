"""What a proof is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....common.errors import first_line


@dataclass(frozen=True)
class Setting:
    """Where a proof runs.

    Args:
        device: "cuda", or "cpu" for a rehearsal, which leaves out what only a GPU has.
        gpus: how many processes the trainings have; on "cuda" as many GPUs.
        folder: empty, for the proof's own files.
    """

    device: str
    gpus: int
    folder: Path

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"


@dataclass(frozen=True)
class Row:
    """One line of a proof's table: what was measured, its value, what is allowed, and whether it holds.

    `holds` is None where nothing is demanded: a figure for information, or something left out.
    """

    name: str
    value: Any
    allowed: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Evidence:
    """The result of a proof."""

    rows: list[Row] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return bool(self.rows) and all(row.holds is not False for row in self.rows)


def at_most(name: str, value: float, limit: float) -> Row:
    return Row(name, value, f"<= {limit:g}", value <= limit)


def at_least(name: str, value: float, limit: float) -> Row:
    return Row(name, value, f">= {limit:g}", value >= limit)


def left_out(name: str, reason: str) -> Row:
    return Row(name, "not run", reason)


def proved(name: str, check: Callable[[], str]) -> Row:
    """What a check found; it raises RuntimeError where something does not hold."""
    try:
        return Row(name, check(), "", True)
    except RuntimeError as error:
        return Row(name, first_line(error), "", False)


def evidence(rows: Iterable[Row]) -> Evidence:
    return Evidence(list(rows))
