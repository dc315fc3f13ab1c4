"""What an output may be written over: only what this package made, never an input, never a mount point."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError, first_line, shown
from .files import atomic_file
from .json_files import read_json_object, take_list
from .locks import LOCK, OWNER

#: Lies in every folder that a command made; without it a folder is somebody's own and is never replaced.
MARK = ".dualtoken.json"
_UNSEEN = {MARK, LOCK, OWNER}
#: What makes folders of shards; the last is a program that writes them itself.
SHARD_MAKERS = ("dualtoken prepare", "dualtoken tokenize", "dualtoken")

#: What a command reads, by the option that names it; None is passed over.
Inputs = Mapping[str, Path | Sequence[Path] | None]


def check_output(
    output: Path, inputs: Inputs, overwrite: bool, option: str = "--output", makers: Sequence[str] = ()
) -> None:
    """Raise UserError, before anything is touched, unless `output` can be made by a command.

    Refused are an output that is one of the inputs or a folder around one, the current folder and a mount
    point (the finished folder could not be renamed to them), a file in its place, and a folder that is not
    empty: with `overwrite` only one that this package made and that holds nothing else is allowed. `makers`
    are the commands whose folders may be replaced (none: those of any), so that no model is lost for data,
    nor data for a model.
    """
    refuse_overlap(output, inputs, option)
    with examining(output, option):
        if is_mount_point(output):
            raise UserError(
                f"{option} {output} is a mount point and cannot be replaced; give a folder inside it"
            )
        if Path.cwd().is_relative_to(output.resolve()):
            raise UserError(
                f"{option} {output} is the current folder or holds it, and cannot be replaced; "
                "name a folder to make"
            )
        require_writable(output, option)
        if not output.exists() and not output.is_symlink():
            return
        if not output.is_dir():
            raise UserError(f"{option} {output} exists and is not a folder; give another name")
        if all(path.name in _UNSEEN for path in output.iterdir()):
            return
    if not overwrite:
        hint = "give another folder, or pass --overwrite" if is_ours(output) else "give another folder"
        raise UserError(f"{option} {output} exists already: {hint}")
    require_ours(output, option)
    maker = read_json_object(output / MARK).get("made_by")
    if makers and maker not in makers:
        raise UserError(
            f"{option} {output} was made by {shown(maker)}, which this command does not replace: remove it "
            "yourself, or give another folder"
        )


def refuse_overlap(output: Path, inputs: Inputs, option: str = "--output") -> None:
    """Raise UserError where `output` is one of the inputs, or a folder that holds one."""
    with examining(output, option):
        target = output.resolve()
    for name, given in inputs.items():
        for path in [given] if isinstance(given, Path) else given or []:
            with examining(path, name):
                source = path.resolve()
            if source == target:
                raise UserError(f"{option} {output} is also {name}: give another folder, it would be lost")
            if source.is_relative_to(target):
                raise UserError(
                    f"{option} {output} holds {name} {path}: give another folder, it would be lost"
                )


def require_ours(folder: Path, option: str = "--output") -> None:
    """Raise UserError unless this package made `folder`, and everything in it."""
    if not is_ours(folder):
        raise UserError(
            f"{option} {folder} was not made by dualtoken (it has no {MARK}), so it is not replaced: remove "
            "it yourself, or give another folder"
        )
    foreign = sorted({path.name for path in folder.iterdir()} - made_entries(folder) - _UNSEEN)
    if foreign:
        raise UserError(
            f"{option} {folder} holds {foreign[0]!r}, which dualtoken did not make, so it is not replaced: "
            "move that away, or give another folder"
        )


def is_ours(folder: Path) -> bool:
    """Whether a command made `folder`, or files in it."""
    return (folder / MARK).is_file()


def made_entries(folder: Path) -> set[str]:
    """What a command made in `folder`, by the mark there. UserError for a mark that is not one."""
    if not is_ours(folder):
        return set()
    mark = folder / MARK
    return set(
        take_list(read_json_object(mark), "entries", lambda name: isinstance(name, str), "names", mark)
    )


def mark_output(folder: Path, command: str, entries: Iterable[str] | None = None) -> None:
    """Leave the mark that `command` made `folder` and its `entries` (None: all that lie there now)."""
    names = {path.name for path in folder.iterdir()} if entries is None else set(entries)
    with atomic_file(folder / MARK) as temporary:
        temporary.write_text(
            json.dumps({"made_by": command, "entries": sorted(names - _UNSEEN)}, indent=1), encoding="utf-8"
        )


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted at `path`, as a container's volume, also from the same disk."""
    if os.path.ismount(path):
        return True
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return False
    mounted = {line.split()[4].replace("\\040", " ") for line in table.splitlines()}
    return str(path.resolve()) in mounted


def require_writable(output: Path, option: str) -> None:
    """Raise UserError where `output` cannot be made or replaced: nothing may be written where it lies.

    That is tried out, as permissions tell too little of read-only disks and of what an administrator may do.
    """
    above = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise UserError(f"{option} {output} cannot be made: {above} is not a folder")
    try:
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        raise UserError(
            f"{option} {output} cannot be made: {above} is not writable ({error.strerror})"
        ) from None


@contextmanager
def examining(path: Path, option: str) -> Iterator[None]:
    """Turn what the file system says of a path (too long, a loop of links, forbidden) into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{option} {shown(str(path))} cannot be used: {reason}") from None
