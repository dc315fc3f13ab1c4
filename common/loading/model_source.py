"""The location of a model: inside the package by its name, a folder, or the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import UserError, shown
from ..paths import user_path

NANO = "nano"
PRETRAINED_FOLDER = Path(__file__).resolve().parents[2] / "pretrained"
#: Nothing else is requested from the hub, so that a typing error does not cost a minute.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")


def model_source(source: str | os.PathLike[str], what: str = "model") -> str:
    """The folder or hub id of `source`; "nano" is the model inside the package.

    Errors:
        UserError for a name that is neither "nano", nor a folder, nor a hub id "owner/name".
    """
    if not isinstance(source, str | os.PathLike):
        raise UserError(f"{what} {shown(source)} is not a name; give {_ALLOWED}")
    if str(source) == NANO:
        folder = PRETRAINED_FOLDER / NANO
        if not folder.is_dir():
            raise UserError(
                f"this installation lacks the nano model (no folder {folder}); reinstall, or give a folder"
            )
        return str(folder)
    path = user_path(source)
    try:
        if path.is_dir():
            return str(path)
        there = path.exists()
    except (OSError, ValueError):  # too long, a loop of links
        there = False
    if not there and is_hub_id(source):
        return str(source)
    raise UserError(f"no {what} {shown(str(source))}: give {_ALLOWED}")


def is_hub_id(source: str | os.PathLike[str]) -> bool:
    """Whether `source` has the form "owner/name"."""
    return isinstance(source, str) and _HUB_ID.fullmatch(source) is not None and ".." not in source


_ALLOWED = "'nano', the folder of a saved model, or a hub id 'owner/name'"
