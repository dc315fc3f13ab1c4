"""The settings of a run, and the items of a task for them."""

from __future__ import annotations

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
    """How a run is made.

    Args:
        data: folder of the task's official files, or of folders that are named after tasks; or "hub",
            "hub@REVISION", "hub:ORG/NAME[@REVISION]"; None: what comes with the package.
        split: None takes the task's default.
        batch_size: items at a time; part of what is compared when a run is resumed.
        limit: only this many items, for a quick look; there is no headline metric then.
        seed: of generated images; item i is generated from seed + i.
        generation: overrides of the task's own settings.
        rank, world: this process among those that share the work.
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
    """All items of a split, and where they are from: "package", "files" or "hub:ORG/NAME@COMMIT"."""

    split: str
    items: Sequence[Item] = field(repr=False)
    source: str


def load_data(task: Task, settings: Settings) -> Loaded:
    """The items of the split meant."""
    split = task.split_or_default(settings.split)
    root, source = _open(task, settings.data, split)
    items = task.items(root, split)
    return Loaded(split, items, source)


def _open(task: Task, data: Path | str | None, split: str) -> tuple[Path | None, str]:
    """The folder to load from, and where it is from."""
    packaged = not task.source
    if data is None or (packaged and is_hub(data)):  # such a one may be asked for together with others
        return None, "package"
    if is_hub(data):
        return fetch(str(data), task.name, task.hub, split)
    root = Path(data)
    own = [] if packaged else [root / task.name, root / task.name.replace("-", "_")]
    return next((folder for folder in own if folder.is_dir()), root), "files"


def image_paths(items: Sequence[Item]) -> list[Path]:
    """The images of the items that are files."""
    return [image for item in items for image in item.images if not isinstance(image, Image.Image)]


def need_images(task: Task, items: Sequence[Item]) -> None:
    """UserError if images are missing."""
    paths = image_paths(items)
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise UserError(
            f"{task.name}: {len(missing)} of {len(paths)} images are missing, the first is {missing[0]}"
        )
