"""Checks of the files of a model folder, before any library opens them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import UserError, shown
from ..json_files import LARGEST_FILE

#: Files that transformers and tokenizers read into memory; weights are only mapped.
READ_WHOLE = (".json", ".jinja", ".txt", ".model")
WEIGHTS = ".safetensors"
TEMPLATES = "additional_chat_templates"


def check_model_files(source: object, subfolder: str | None = None) -> None:
    """Raise UserError for a file of a model folder that reading would block on, or never finish.

    Refused unopened are a pipe, a device, and settings, vocabularies and templates of more than
    `LARGEST_FILE` bytes. A `source` that is not a folder (a hub id) is not checked.
    """
    if not isinstance(source, str | os.PathLike):
        return
    folder = Path(source) / (subfolder or "")
    for path in (*_files(folder), *_files(folder / TEMPLATES)):
        _check(path)


def _files(folder: Path) -> list[Path]:
    """The files of a folder that a model is read from, sorted; none if it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in (*READ_WHOLE, WEIGHTS))
    except (OSError, ValueError):
        return []


def _check(path: Path) -> None:
    try:
        about = path.stat()
    except OSError:  # a broken link: the reader of the file reports it
        return
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
        raise UserError(f"{shown(str(path))} is a pipe or a device; a model's folder holds plain files only")
    if path.suffix != WEIGHTS and about.st_size > LARGEST_FILE and stat.S_ISREG(about.st_mode):
        raise UserError(
            f"{shown(str(path))} has {about.st_size} bytes; at most {LARGEST_FILE} of it are read"
        )
