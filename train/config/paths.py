"""Paths in a recipe as people write them: ~ is home, and what the package ships is found from anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.paths import user_path

_ROOT = Path(__file__).resolve().parents[2]


def locate(section: Any, *names: str) -> None:
    """Expand the paths in these fields of a frozen dataclass, in place: ~, and the package's pretrained/…"""
    for name in names:
        path = getattr(section, name)
        if not isinstance(path, str):
            continue
        if path.startswith("~"):
            path = str(user_path(path, name))
        elif path.startswith("pretrained/") and not Path(path).exists() and (_ROOT / path).exists():
            path = str(_ROOT / path)
        object.__setattr__(section, name, path)
