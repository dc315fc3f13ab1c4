"""Unfinished output: the folder `OUTPUT.partial`, locked by one process, and how it becomes `OUTPUT`.

It holds the plan of the work: what the result depends on (any JSON).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import replace_folder, write_text
from ..common.json_files import read_json_object
from ..common.locks import LOCK, OWNER, only_process
from ..common.outputs import MARK, SHARD_MAKERS, Inputs, check_output, mark_output, refuse_overlap

PLAN = "plan.json"
_KEPT = {LOCK, OWNER, MARK}


def partial_folder(output: Path) -> Path:
    """The folder of the unfinished work for `output`, next to it."""
    named = output if output.name not in ("", "..") else output.resolve()
    return named.parent / f"{named.name}.partial"


@contextmanager
def locked_output(output: Path, inputs: Inputs, overwrite: bool, command: str) -> Iterator[Path]:
    """Lock the folder of unfinished work for `output`, and yield it; `command` is named in its mark.

    Errors:
        UserError where `output` may not be made (`check_output`), and as in `locked_folder`.
    """
    check_output(output, inputs, overwrite, makers=SHARD_MAKERS)
    folder = partial_folder(output)
    refuse_overlap(folder, inputs, "the unfinished output")
    with locked_folder(folder, f"--output {output}", command):
        # Another process may have finished it meanwhile.
        check_output(output, inputs, overwrite, makers=SHARD_MAKERS)
        yield folder


@contextmanager
def locked_folder(folder: Path, what: str, command: str) -> Iterator[None]:
    """Lock a folder of unfinished work for this process; at the end it is removed when it is empty.

    Errors:
        UserError where dualtoken did not make the folder, and while another process holds the lock; `what`
        names the folder.
    """
    check_made_here(folder)
    with only_process(folder, what):
        mark_output(folder, command, entries=())
        try:
            yield
        finally:
            if folder.is_dir() and all(path.name in _KEPT for path in folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)


def check_made_here(folder: Path) -> None:
    """Raise UserError for a folder of unfinished work that dualtoken did not make."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"unfinished output goes to {folder}, which is not a folder: move it away")
    # Files that a killed process had not renamed yet have a leading dot. The list is made before the mark is
    # looked for: a process that is making the folder meanwhile marks it before it writes any other file.
    named = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if named and not (folder / MARK).is_file():
        raise UserError(
            f"unfinished output goes to {folder}, which dualtoken did not make (it has no {MARK}): "
            "move it away, or give another --output"
        )


def clear(folder: Path) -> None:
    """Remove all unfinished work from a locked folder; the lock and the mark stay."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in _KEPT:
            path.unlink(missing_ok=True)


def publish(finished: Path, output: Path) -> None:
    """Rename the folder `finished` to `output`. UserError where that fails; `finished` is kept then."""
    try:
        replace_folder(finished, output)
    except OSError as error:
        raise UserError(
            f"{output} cannot be made ({error.strerror}); the finished result is kept in {finished}: fix "
            "that and give the same command again, which only renames it"
        ) from error


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of the work in `folder`; None where it is missing or damaged."""
    try:
        return read_json_object(folder / PLAN)
    except UserError:
        return None


def write_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan of the work in `folder`."""
    write_text(folder / PLAN, json.dumps(plan, ensure_ascii=False, indent=2))


def can_resume(folder: Path, plan: Mapping[str, Any], overwrite: bool) -> bool:
    """Whether the work in `folder` has this plan, so that it can be resumed.

    Errors:
        UserError for another plan without `overwrite`.
    """
    found, plan = read_plan(folder), json.loads(json.dumps(plan))
    if found is None or found == plan:
        return found is not None
    if not overwrite:
        changed = sorted(key for key in plan.keys() | found.keys() if found.get(key) != plan.get(key))
        raise UserError(
            f"{folder} holds unfinished work that differs in {', '.join(changed)}: give the earlier command "
            "again to finish it, remove it, or pass --overwrite to begin again."
        )
    return False
