"""Check that the data of a task are complete, before they are given to a model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import UserError
from ..data.files import MissingData
from ..data.hub import is_hub
from .task import Task
from .task_data import Settings, image_paths, load_data

_NAMED = 3  # missing images that are named


@dataclass(frozen=True)
class SplitReport:
    """The state of the data of one split.

    Args:
        lines: what to print.
        has_items: whether all items are there.
        has_images: whether all images of the items are there.
        absent: whether none of the files are there.
    """

    lines: tuple[str, ...]
    has_items: bool = False
    has_images: bool = False
    absent: bool = False


def check_splits(
    task: Task, data: Path | str | None, splits: Sequence[str] | None = None
) -> Iterator[SplitReport]:
    """Reports on the splits given.

    By default on those that are there (the first if none is); of data on the hub on the first, because the
    others may be large.
    """
    if splits is not None or is_hub(data):
        for split in splits or [task.split_or_default(None)]:
            yield check_split(task, data, split)
        return
    reports = [check_split(task, data, split) for split in task.splits]
    yield from [report for report in reports if not report.absent] or reports[:1]


def check_split(task: Task, data: Path | str | None, split: str) -> SplitReport:
    """Load one split and report on it."""
    head, expected = f"{task.name} ({split}):", task.splits.get(split)
    try:
        loaded = load_data(task, Settings(data=data, split=split))
    except UserError as error:
        absent, reason = isinstance(error, MissingData), str(error).removeprefix(f"{task.name}: ")
        return SplitReport(
            (f"{head} {'not there' if absent else 'cannot be loaded'}: {reason}",), absent=absent
        )
    complete = expected in (None, len(loaded.items))
    count = "any number is accepted" if expected is None else f"{expected} expected"
    verdict = "" if complete else "  WRONG NUMBER"
    lines = [f"{head} {len(loaded.items)} items, {count}{verdict}  [{loaded.source}]"]
    paths = list(dict.fromkeys(image_paths(loaded.items)))
    if missing := [path for path in paths if not path.exists()]:
        names = ", ".join(map(str, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
        lines.append(f"  {len(missing)} of {len(paths)} image files are missing: {names}")
    return SplitReport(tuple(lines), complete, not missing)
