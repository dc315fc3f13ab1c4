"""Checks of output folders: only those of this package are replaced, no inputs and no mount points."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError, first_line, shown
from .files import write_text
from .json_files import read_json_object, take_list
from .locks import LOCK, OWNER

#: The file that marks folders made by a command; a folder without it is the user's and is never replaced.
MARK = ".dualtoken.json"
#: The index of a folder of shards, which readers may add to it at any time.
SHARDS_INDEX = "shards.index"
_UNSEEN = {MARK, LOCK, OWNER, SHARDS_INDEX}
#: Makers of folders of shards; the last is a program that calls the library.
SHARD_MAKERS = ("dualtoken prepare", "dualtoken tokenize", "dualtoken")

#: The inputs of a command by option; None is ignored.
Inputs = Mapping[str, Path | Sequence[Path] | None]


def check_output(
    output: Path, inputs: Inputs, overwrite: bool, option: str = "--output", makers: Sequence[str] = ()
) -> None:
    """Raise UserError, before anything is changed, unless a command can make the folder `output`.

    Refused are an output that is or contains an input, the current folder, a mount point (the finished folder
    could not be renamed to it), a file, and a folder that is not empty; with `overwrite`, one with other
    content than this package made. `makers`: the commands whose folders may be replaced (default: all), so
    that data never replaces a model.
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
    """Raise UserError if `output` is one of the inputs, or a folder that contains one."""
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
    """Raise UserError unless this package made `folder` and everything in it."""
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
    """The names of files that a command made in `folder`, from its mark; UserError for a broken mark."""
    if not is_ours(folder):
        return set()
    mark = folder / MARK
    return set(
        take_list(read_json_object(mark), "entries", lambda name: isinstance(name, str), "names", mark)
    )


def mark_output(folder: Path, command: str, entries: Iterable[str] | None = None) -> None:
    """Mark `folder` and its `entries` (default: all in it) as made by `command`."""
    names = {path.name for path in folder.iterdir()} if entries is None else set(entries)
    write_text(folder / MARK, json.dumps({"made_by": command, "entries": sorted(names - _UNSEEN)}, indent=1))


def is_mount_point(path: Path) -> bool:
    """Whether `path` is a mount point, such as a container's volume, also of the same disk."""
    if os.path.ismount(path):
        return True
    try:
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # not Linux
        return False
    mounted = {line.split()[4].replace("\\040", " ") for line in table.splitlines()}
    return str(path.resolve()) in mounted


def require_writable(output: Path, option: str) -> None:
    """Raise UserError if nothing can be written next to `output`.

    A file is written to find out: permissions do not reflect read-only disks and an administrator's rights.
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
    """Turn errors of the file system (path too long, a loop of links, forbidden) into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{option} {shown(str(path))} cannot be used: {reason}") from None
