"""Writing files and folders so that a reader never sees a half-written one."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is renamed to `path`, on an error removed.

    The suffix of `path` is kept, because some writers choose the format by it. Parent folders are created.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_hidden(target.stem), suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        make_readable(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file in UTF-8, atomically (see `atomic_file`)."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder next to `path`; on success it becomes `path`, on an error removed.

    An existing folder at `path` is replaced, so no stale files remain.

    Errors:
        UserError if the last renaming fails; the finished folder is then kept, and the message names it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_hidden(target.name), dir=target.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    try:
        replace_folder(temporary, target)
    except OSError as error:
        raise UserError(
            f"{target} cannot be made ({error.strerror}); what was finished is kept in {temporary}"
        ) from error


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_readable(path: Path) -> None:
    """Give a file the usual permissions; temporary files and those of safetensors are private."""
    os.chmod(path, 0o666 & ~_umask())


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder already there is moved aside first and deleted last."""
    if not target.exists():
        os.replace(source, target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        os.replace(target, aside / "old")
        try:
            os.replace(source, target)
        except BaseException:
            os.replace(aside / "old", target)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _hidden(name: str) -> str:
    """The prefix of a temporary name for `name`, which may have the greatest possible length."""
    return f".{name[:32]}-"


def _umask() -> int:
    """The process's umask (it can only be read by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
