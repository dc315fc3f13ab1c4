"""What is there of a benchmark's data, before a model is asked anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import UserError
from ..data.hub import is_hub
from .runner import Settings, image_paths, load_data
from .task import Benchmark, MissingData

_NAMED = 3  # missing images that are named


@dataclass(frozen=True)
class SplitReport:
    """The data of one split.

    `problem` says why they cannot be loaded; `absent` whether that is because no files are there at all.
    """

    name: str
    split: str
    expected: int | None
    found: int = 0
    source: str = ""
    images: int = 0
    missing: tuple[Path, ...] = ()
    problem: str = ""
    absent: bool = False

    def is_complete(self, images: bool = True) -> bool:
        """Whether there is nothing to complain about; `images`: missing ones are."""
        counted = self.expected in (None, self.found)
        return not self.problem and counted and not (images and self.missing)

    def lines(self) -> list[str]:
        """What to print."""
        head = f"{self.name} ({self.split}):"
        if self.problem:
            return [f"{head} {'not there' if self.absent else 'cannot be loaded'}: {self.problem}"]
        right = "any number will do" if self.expected is None else f"{self.expected} expected"
        verdict = "" if self.expected in (None, self.found) else "  WRONG NUMBER"
        lines = [f"{head} {self.found} items, {right}{verdict}  [{self.source}]"]
        if self.missing:
            names = ", ".join(map(str, self.missing[:_NAMED]))
            more = ", …" if len(self.missing) > _NAMED else ""
            lines.append(f"  {len(self.missing)} of {self.images} image files are missing: {names}{more}")
        return lines


def check_splits(
    benchmark: Benchmark, data: Path | str | None, splits: Sequence[str] | None = None
) -> Iterator[SplitReport]:
    """Reports on the splits given.

    By default on all that are there (absent ones are left out while another one is there), and for data of
    the hub on the first, because the others may be large.
    """
    if splits is not None or is_hub(data):
        for split in splits or [benchmark.split_or_default(None)]:
            yield check_split(benchmark, data, split)
        return
    reports = [check_split(benchmark, data, split) for split in benchmark.splits]
    yield from [report for report in reports if not report.absent] or reports[:1]


def check_split(benchmark: Benchmark, data: Path | str | None, split: str) -> SplitReport:
    """Load one split and count its items and images."""
    expected = benchmark.splits[split]
    try:
        loaded = load_data(benchmark, Settings(data=data, split=split))
    except UserError as error:
        absent = isinstance(error, MissingData)
        return SplitReport(benchmark.name, split, expected, problem=str(error), absent=absent)
    paths = list(dict.fromkeys(image_paths(loaded.items)))
    missing = tuple(path for path in paths if not path.exists())
    found = len(loaded.items)
    return SplitReport(benchmark.name, split, expected, found, loaded.source, len(paths), missing)
