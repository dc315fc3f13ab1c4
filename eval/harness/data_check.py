"""Whether a task's data are complete, before a model is asked anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import UserError
from ..data.hub import is_hub
from .task import MissingData, Task
from .task_data import Loaded, Settings, image_paths, load_data

_NAMED = 3  # missing images that are named


@dataclass(frozen=True)
class SplitReport:
    """The data of one split, or the reason why they cannot be loaded."""

    task: Task
    split: str
    loaded: Loaded | None
    problem: UserError | None = None

    @property
    def absent(self) -> bool:
        """Whether no files are there at all."""
        return isinstance(self.problem, MissingData)

    @property
    def expected(self) -> int | None:
        """The official number of items; None where any number will do."""
        return self.task.splits[self.split]

    def images(self) -> tuple[list[Path], list[Path]]:
        """The image files that the items name, and those of them that are missing."""
        paths = list(dict.fromkeys(image_paths(self.loaded.items))) if self.loaded else []
        return paths, [path for path in paths if not path.exists()]

    def is_complete(self, images: bool = True) -> bool:
        """Whether all items are there and, with `images`, all images."""
        counted = self.loaded is not None and self.expected in (None, len(self.loaded.items))
        return counted and not (images and self.images()[1])

    def lines(self) -> list[str]:
        """What to print."""
        head = f"{self.task.name} ({self.split}):"
        if self.loaded is None:
            return [f"{head} {'not there' if self.absent else 'cannot be loaded'}: {self.problem}"]
        count = "any number will do" if self.expected is None else f"{self.expected} expected"
        verdict = "" if self.is_complete(images=False) else "  WRONG NUMBER"
        lines = [f"{head} {len(self.loaded.items)} items, {count}{verdict}  [{self.loaded.source}]"]
        paths, missing = self.images()
        if missing:
            names = ", ".join(map(str, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
            lines.append(f"  {len(missing)} of {len(paths)} image files are missing: {names}")
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
    """Load one split."""
    try:
        return SplitReport(task, split, load_data(task, Settings(data=data, split=split)))
    except UserError as error:
        return SplitReport(task, split, None, error)
