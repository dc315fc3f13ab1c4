"""The settings of a run, and the data of a task for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ...common.errors import UserError
from ..data.hub import fetch, is_hub
from .task import Item, Task


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Args:
        data: folder of the task's official files, or of folders named after tasks; or "hub",
            "hub@REVISION", "hub:ORG/NAME[@REVISION]"; None: data that come with the package.
        split: None for the task's default.
        batch_size: items at a time; must be the same when a run is resumed.
        limit: the first items only; the result then has no headline metric.
        seed: item i generates images from seed + i.
        generation: overrides of the task's settings of generation.
        rank, world: this process and the number of processes that share the items.
    """

    data: Path | str | None = None
    split: str | None = None
    batch_size: int = 16
    limit: int | None = None
    seed: int = 0
    generation: Mapping[str, Any] | None = None
    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Loaded:
    """All items of a split, and their source: "package", "files" or "hub:ORG/NAME@COMMIT"."""

    split: str
    items: Sequence[Item] = field(repr=False)
    source: str


def load_data(task: Task, settings: Settings) -> Loaded:
    """The items of the split that the settings name."""
    split = task.split_or_default(settings.split)
    root, source = _open(task, settings.data, split)
    return Loaded(split, task.items(root, split), source)


def _open(task: Task, data: Path | str | None, split: str) -> tuple[Path | None, str]:
    """The folder to load from, and its source."""
    packaged = not task.source
    if data is None or (packaged and is_hub(data)):  # --data hub may be meant for other tasks of the run
        return None, "package"
    if is_hub(data):
        return fetch(str(data), task.name, task.hub, split)
    root = Path(data)
    named = [] if packaged else [root / task.name, root / task.name.replace("-", "_")]
    return next((folder for folder in named if folder.is_dir()), root), "files"


def image_paths(items: Sequence[Item]) -> list[Path]:
    """The files of the items' images."""
    return [image for item in items for image in item.images if not isinstance(image, Image.Image)]


def need_images(task: Task, items: Sequence[Item]) -> None:
    """UserError if image files of the items are missing."""
    paths = image_paths(items)
    if missing := [path for path in paths if not path.exists()]:
        raise UserError(
            f"{task.name}: {len(missing)} of {len(paths)} images are missing, the first is {missing[0]}"
        )
