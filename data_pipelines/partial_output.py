"""Output in the making: `OUTPUT.partial`, which one process holds, and how it becomes `OUTPUT`.

Unfinished work lies in a folder next to the output, with the plan of what it depends on (any JSON).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import atomic_file, replace_folder
from ..common.json_files import read_json_object
from ..common.locks import LOCK, OWNER, only_process
from ..common.outputs import MARK, SHARD_MAKERS, Inputs, check_output, mark_output, refuse_overlap

PLAN = "plan.json"
_KEPT = {LOCK, OWNER, MARK}


def partial_folder(output: Path) -> Path:
    """Where the unfinished work for `output` lies: next to it."""
    named = output if output.name not in ("", "..") else output.resolve()
    return named.parent / f"{named.name}.partial"


@contextmanager
def making(output: Path, inputs: Inputs, overwrite: bool, command: str) -> Iterator[Path]:
    """The folder of unfinished work for `output`, held by this process; `command` is named in its mark.

    Errors:
        UserError where `output` may not be made (`check_output`), where the folder is somebody's own, and
        while another process makes the same output.
    """
    check_output(output, inputs, overwrite, makers=SHARD_MAKERS)
    folder = partial_folder(output)
    refuse_overlap(folder, inputs, "the unfinished output")
    with holding(folder, f"--output {output}", command):
        # Another process may have finished it meanwhile.
        check_output(output, inputs, overwrite, makers=SHARD_MAKERS)
        yield folder


@contextmanager
def holding(folder: Path, what: str, command: str) -> Iterator[None]:
    """Hold a folder of unfinished work for this process; it is removed at the end when nothing lies in it.

    Errors:
        UserError where the folder is somebody's own, and while another process holds it; `what` names it.
    """
    _require_ours(folder)
    with only_process(folder, what):
        mark_output(folder, command, entries=())
        try:
            yield
        finally:
            if folder.is_dir() and all(path.name in _KEPT for path in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)


def _require_ours(folder: Path) -> None:
    if not folder.is_symlink() and not folder.exists():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"unfinished output goes to {folder}, which is not a folder: move it away")
    # What a killed process was about to rename has a leading dot.
    own = (folder / MARK).is_file() or all(path.name.startswith(".") for path in folder.iterdir())
    if not own:
        raise UserError(
            f"unfinished output goes to {folder}, which dualtoken did not make (it has no {MARK}): "
            "move it away, or give another --output"
        )


def clear(folder: Path) -> None:
    """Remove all unfinished work from a folder that is held; the lock and the mark stay."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in _KEPT:
            path.unlink(missing_ok=True)


def deliver(finished: Path, output: Path) -> None:
    """Rename the folder `finished` to `output`.

    Errors:
        UserError where it cannot be renamed; it stays, and the same command can try again.
    """
    try:
        replace_folder(finished, output)
    except OSError as error:
        raise UserError(
            f"{output} cannot be made ({error.strerror}); the finished result is kept in {finished}: mend "
            "that and give the same command again, which only renames it"
        ) from error


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the work in `folder`; None where there is none, or a damaged one."""
    try:
        return read_json_object(folder / PLAN)
    except UserError:
        return None


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Keep the plan of the work in `folder`."""
    with atomic_file(folder / PLAN) as temporary:
        temporary.write_text(json.dumps(plan, ensure_ascii=False, indent=2), encoding="utf-8")


def can_resume(folder: Path, plan: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the work in `folder` has this plan, so that it can be resumed.

    False where nothing in it is known to be complete: without a plan, and with another one under
    `overwrite`. Raises UserError for another plan without `overwrite`.
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
