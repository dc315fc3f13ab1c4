"""The loss curves of a run: read from its log, thinned, and stored as a small CSV for comparison."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UserError
from ..common.json_files import JsonError, parse_json, read_text
from ..common.values import whole_number

LOG = "log.jsonl"
PREFIX = "loss/"
#: Rows of a CSV; a plot does not resolve more points.
MAX_ROWS = 200
#: Losses of a file; a plot cannot show more.
MAX_LOSSES = 64
#: Larger losses mean divergence, and cannot be plotted to scale.
LARGEST = 1e30


@dataclass(frozen=True)
class LossCurves:
    """The losses over the steps of one run.

    Args:
        steps: optimizer steps, ascending.
        losses: by name, a value for each step; nan for a missing one.
    """

    steps: list[int]
    losses: dict[str, list[float]]

    @classmethod
    def read(cls, path: Path) -> LossCurves:
        """Read a run's folder, its log.jsonl, or a CSV of `write_csv`, without the losses by source.

        An incomplete last line of a killed run is ignored. Of repeated steps the last one counts.

        Errors:
            UserError for a file of another kind, or without losses.
        """
        file = path / LOG if path.is_dir() else path
        try:
            text = read_text(file)
        except UserError as error:
            raise UserError(
                f"{error}; give a run's folder, its {LOG}, or a CSV of `dualtoken curves --csv`"
            ) from None
        rows: list[dict[str, float]] = []
        for row in _csv_rows(text, file) if file.suffix == ".csv" else _log_rows(text, file):
            while rows and rows[-1]["step"] >= row["step"]:
                rows.pop()
            rows.append(row)
        names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
        if not names:
            raise UserError(f"{file} has no losses yet; wait until the run has logged a step")
        if len(names) > MAX_LOSSES:
            raise UserError(f"{file} has {len(names)} losses; at most {MAX_LOSSES} can be plotted")
        losses = {name: [row.get(name, math.nan) for row in rows] for name in names}
        return cls([int(row["step"]) for row in rows], losses)

    def thinned(self, rows: int = MAX_ROWS) -> LossCurves:
        """Curves of at most `rows` rows, each the mean of neighbouring ones."""
        size = math.ceil(len(self.steps) / rows)
        starts = range(0, len(self.steps), size)
        losses = {
            name: [_mean(values[start : start + size]) for start in starts]
            for name, values in self.losses.items()
        }
        return LossCurves([self.steps[start : start + size][-1] for start in starts], losses)

    def smoothed(self, window: int) -> LossCurves:
        """The moving average over the last `window` values."""
        losses = {
            name: [_mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
            for name, values in self.losses.items()
        }
        return LossCurves(self.steps, losses)

    def at(self, name: str, step: int) -> float:
        """The loss at the nearest logged step; nan for an unknown loss."""
        if name not in self.losses:
            return math.nan
        nearest = min(range(len(self.steps)), key=lambda index: abs(self.steps[index] - step))
        return self.losses[name][nearest]

    def write_csv(self, path: Path) -> None:
        """Write a column for the step and one for each loss, with four significant digits; nan is empty."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["step", *self.losses])
            for index, step in enumerate(self.steps):
                values = [losses[index] for losses in self.losses.values()]
                writer.writerow([step, *("" if math.isnan(value) else f"{value:.4g}" for value in values)])


def _log_rows(text: str, file: Path) -> Iterator[dict[str, float]]:
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            losses = {
                name.removeprefix(PREFIX): _loss(value)
                for name, value in row.items()
                if name.startswith(PREFIX) and name.count("/") == 1
            }
            found = {"step": whole_number(row["step"], "step", 0, 2**53), **losses}
        except (JsonError, UserError, ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # without its line break: incomplete
                return
            raise UserError(f"{file}, line {number} is not a line of a run's log") from error
        yield found


def _csv_rows(text: str, file: Path) -> Iterator[dict[str, float]]:
    reader = csv.DictReader(text.splitlines())
    try:
        if "step" not in (reader.fieldnames or ()):
            raise UserError(f"{file} has no column step; it must be a CSV of `dualtoken curves --csv`")
        for row in reader:
            step = whole_number(int(row["step"] or ""), "step", 0, 2**53)
            losses = {name: _loss(value) for name, value in row.items() if name != "step" and value}
            yield {"step": step, **losses}
    except (csv.Error, ValueError, TypeError) as error:
        if isinstance(error, UserError) and reader.line_num <= 1:
            raise
        raise UserError(f"{file}, line {reader.line_num} is not made of numbers") from error


def _loss(value: str | float | None) -> float:
    """The loss, or nan if it is missing or too large to plot."""
    try:
        number = math.nan if value is None else float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.nan
    return number if abs(number) <= LARGEST else math.nan


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
