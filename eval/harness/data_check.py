"""Whether a task's data are complete, before a model is asked anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import UserError
from ..data.hub import is_hub
from .task import MissingData, Task
from .task_data import Settings, image_paths, load_data

_NAMED = 3  # missing images that are named


@dataclass(frozen=True)
class SplitReport:
    """The data of one split.

    `problem` is the reason why they cannot be loaded; `absent` is true where no files are there at all.
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
        """Whether all items are there and, with `images`, all images."""
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
    task: Task, data: Path | str | None, splits: Sequence[str] | None = None
) -> Iterator[SplitReport]:
    """Reports on the splits given.

    By default on all that are there (absent ones are left out while another one is there), and for data of
    the hub on the first, because the others may be large.
    """
    if splits is not None or is_hub(data):
        for split in splits or [task.split_or_default(None)]:
            yield check_split(task, data, split)
        return
    reports = [check_split(task, data, split) for split in task.splits]
    yield from [report for report in reports if not report.absent] or reports[:1]


def check_split(task: Task, data: Path | str | None, split: str) -> SplitReport:
    """Load one split and count its items and images."""
    expected = task.splits[split]
    try:
        loaded = load_data(task, Settings(data=data, split=split))
    except UserError as error:
        absent = isinstance(error, MissingData)
        return SplitReport(task.name, split, expected, problem=str(error), absent=absent)
    paths = list(dict.fromkeys(image_paths(loaded.items)))
    missing = tuple(path for path in paths if not path.exists())
    return SplitReport(
        task.name,
        split,
        expected,
        found=len(loaded.items),
        source=loaded.source,
        images=len(paths),
        missing=missing,
    )
