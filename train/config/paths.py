"""Paths in a recipe as people write them: ~ is home, and what the package ships is found from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.paths import user_path

_ROOT = Path(__file__).resolve().parents[2]


def located(path: str, name: str) -> str:
    """A path with ~ expanded, and for pretrained/… where the package has it. name: its key, for messages."""
    if path.startswith("~"):
        return str(user_path(path, name))
    if path.startswith("pretrained/") and not Path(path).exists() and (_ROOT / path).exists():
        return str(_ROOT / path)
    return path


def locate(section: Any, *names: str) -> None:
    """Expand the paths in these fields of a frozen dataclass, in place; values other than strings stay."""
    for name in names:
        path = getattr(section, name)
        if isinstance(path, str):
            object.__setattr__(section, name, located(path, name))
