"""Output in the making: what may be written over, and which unfinished work a command may go on with.

Unfinished work lies in a folder beside the output, with the plan of what it depends on (any JSON).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import atomic_file

PLAN = "plan.json"


def require_free(output: Path, overwrite: bool) -> None:
    """Raise UserError when `output` is something else than an empty folder, unless it may be written over."""
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"Output {output} exists already: give another folder or pass --overwrite.")


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the work in `folder`; None where there is none, or a torn one."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    with atomic_file(folder / PLAN) as temporary:
        temporary.write_text(json.dumps(plan, ensure_ascii=False, indent=2), encoding="utf-8")


def goes_on(folder: Path, plan: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the work in `folder` has this plan, so that it can be gone on with.

    False where nothing in it is known to be whole: without a plan, and with another one under `overwrite`.
    Raises UserError for another plan without `overwrite`.
    """
    found, plan = read_plan(folder), json.loads(json.dumps(plan))
    if found is None or found == plan:
        return found is not None
    if not overwrite:
        changed = sorted(key for key in plan.keys() | found.keys() if found.get(key) != plan.get(key))
        raise UserError(
            f"{folder} holds unfinished work with another {', '.join(changed)}: give the same command as "
            "before to finish it, remove it, or pass --overwrite to begin again."
        )
    return False
