"""Checks of paths that users and files give: expanded, regular, inside their folder."""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path, PurePosixPath

from .errors import UserError, shown

#: Names of splits and shards, which become file names.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._+-]{0,98}[A-Za-z0-9])?")


def user_path(path: str | os.PathLike[str], what: str = "path") -> Path:
    """`path` with a leading ~ expanded.

    Errors:
        UserError, starting with `what`, for anything that is not a path or that no file system accepts.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{what} {shown(path)} is not a path; give a string or a pathlib.Path")
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise UserError(f"{what} {shown(text)} is not a path")
    try:
        expanded = Path(text).expanduser()
        os.fsencode(expanded)
        expanded.exists()
    except RuntimeError:  # ~name of an unknown user
        raise UserError(f"{what} {shown(text)}: there is no such user's home folder") from None
    except (OSError, ValueError) as error:  # too long, or not encodable
        reason = getattr(error, "strerror", None) or "not a path"
        raise UserError(f"{what} {shown(text)} cannot be used: {reason}") from None
    return expanded


def regular_file(path: Path, what: str) -> Path:
    """`path`, if it is a regular file. UserError, starting with `what`, for anything else.

    A pipe or a device could block or never end; it is refused unopened.
    """
    try:
        about = path.stat()
        mode = about.st_mode
        unsized = stat.S_ISREG(mode) and about.st_size == 0 and not _is_empty(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise UserError(f"{what} {shown(str(path))} cannot be read: {reason}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise UserError(f"{what} {shown(str(path))} is {kind}; give a file")
    if unsized:
        raise UserError(f"{what} {shown(str(path))} states no size, as files of /proc; give a copy of it")
    return path


def read_bounded(path: Path, largest: int) -> bytes:
    """The content of a regular file, independent of the size that the file system states (/proc: none).

    Errors:
        OSError for one of more than `largest` bytes, or whose content is not available at once.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        data: bytes | None = file.read(largest + 1)
    reason = errno.EAGAIN if data is None else errno.EFBIG
    if data is None or len(data) > largest:
        raise OSError(reason, os.strerror(reason), str(path))
    return data


def _is_empty(path: Path) -> bool:
    """Whether a file has no content; OSError where it cannot be opened."""
    try:
        return read_bounded(path, 0) == b""
    except OSError as error:
        if error.errno in (errno.EFBIG, errno.EAGAIN, errno.EIO):
            return False
        raise


def inside(folder: Path, name: object, what: str, links: bool = False) -> Path:
    """The path `name` in `folder`, for a name from an untrusted file.

    links: links in the folder may lead out of it (it is the user's own).

    Errors:
        UserError for a name that is not a string, is absolute, or leads out of the folder (also by a link).
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"{what} {shown(name)} is not the name of a file")
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name):
        raise UserError(f"{what} {shown(name)} leads out of {folder}; names are relative to that folder")
    path = folder / native_name(name)
    if links:
        return path
    try:
        stays = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, too long, half of a surrogate pair
        raise UserError(f"{what} {shown(name)} cannot be followed") from None
    if not stays:
        raise UserError(f"{what} {shown(name)} is a link out of {folder}")
    return path


def is_data_url(text: str) -> bool:
    """Whether `text` is a data: URL and not a path; in any case, perhaps after white space."""
    return text[:80].lstrip()[:5].lower() == "data:"


def native_name(name: str) -> str:
    """A file name from UTF-8 text in this process's encoding of file names.

    Under a locale that is not UTF-8 (LC_ALL=C without Python's UTF-8 mode) names on the disk are still UTF-8;
    otherwise the name is returned unchanged.
    """
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        with suppress(UnicodeEncodeError):
            return os.fsdecode(name.encode("utf-8"))
    return name


def walk_files(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted; links to folders are followed, each folder once, so that loops end.

    Includes pipes, devices and broken links, which `regular_file` refuses by name.

    Errors:
        UserError for a folder that cannot be read.
    """
    files: list[Path] = []
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []  # followed last: a folder in the tree keeps its own name
    waiting = [folder]
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        try:
            about = here.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            children = sorted(here.iterdir())
        except OSError as error:
            raise UserError(
                f"folder {shown(str(here))} cannot be read ({error.strerror}): "
                "make it readable, or move it away"
            ) from None
        for child in children:
            if not os.path.isdir(child):  # unlike Path.is_dir, False for what may not be examined
                files.append(child)
            else:
                (links if child.is_symlink() else waiting).append(child)
    return sorted(files)


def is_plain_name(name: object) -> bool:
    """Whether `name` is safe in a file name: letters and digits, with . _ - + between them."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def plain_name(name: object, what: str) -> str:
    """`name`, if `is_plain_name`. UserError, starting with `what`, for anything else."""
    if not isinstance(name, str) or not is_plain_name(name):
        raise UserError(
            f"{what} {shown(name)} cannot name a file; use at most 100 letters, digits, and . _ - +"
        )
    return name


def single_name(name: object, what: str, longest: int = 200) -> str:
    r"""`name`, if it can be one component of a path: printable, without / and \; may have spaces.

    Errors:
        UserError, starting with `what`, for anything else: a name in data must not lead out of a folder.
    """
    allowed = isinstance(name, str) and name.strip(". ") and name.isprintable()
    if not allowed or {"/", "\\"} & set(str(name)) or len(str(name).encode("utf-8", "replace")) > longest:
        raise UserError(
            f"{what} {shown(name)} cannot name a file; use at most {longest} bytes without / and \\"
        )
    return str(name)
