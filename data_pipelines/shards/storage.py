"""Files in a local folder or behind a URL (`s3://…`, `https://…`, any protocol of fsspec), read by ranges.

A `Location` names a file and opens nothing, so it is picklable and safe to fork.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...common.errors import UserError, first_line, shown
from ...common.paths import user_path

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+(::|://)")
_LOCAL = "file://"


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is read through fsspec; `file://` and plain paths are not."""
    text = str(path)
    return bool(_URL.match(text)) and not text.startswith(_LOCAL)


def locate(path: str | os.PathLike[str] | Location) -> Path | Location:
    """`path` as a Path, ~ expanded, or as a Location if it is a URL. UserError for another type."""
    if isinstance(path, Location):
        return path
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise UserError(f"{shown(path)} is not a path; give a string or a pathlib.Path")
    return Location(text.rstrip("/")) if is_url(text) else user_path(text.removeprefix(_LOCAL))


@dataclass(frozen=True)
class Location:
    """A file or folder behind a URL, with the part of pathlib's interface that shards need."""

    url: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Location:
        return Location(f"{self.url}/{name}")

    def with_suffix(self, suffix: str) -> Location:
        """The URL with another ending after the last dot of its last part."""
        folder, _, name = self.url.rpartition("/")
        return Location(f"{folder}/{name.rpartition('.')[0] or name}{suffix}")

    def size(self) -> int:
        """Bytes of the file. Errors as in `read`."""
        with _storage(self.url) as (system, path):
            return int(system.size(path))

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """All bytes, or `length` of them from `offset` on, in one request.

        Errors:
            FileNotFoundError, OSError for any other failure of the storage, UserError for a protocol whose
            package is not installed.
        """
        complete = length is None and offset == 0
        end = None if length is None else offset + length
        with _storage(self.url) as (system, path):
            data = system.cat_file(path, start=None if complete else offset, end=end)
        if length is not None and len(data) > length:
            raise OSError(f"{self.url}: {len(data)} bytes were sent where {length} were requested")
        return bytes(data)

    def open(self) -> BinaryIO:
        """The file, opened for reading from beginning to end."""
        with _storage(self.url) as (system, path):
            opened: BinaryIO = system.open(path, "rb")
        return opened


def read_many(locations: Sequence[Location]) -> list[bytes | None]:
    """The contents of small files, fetched in one request if possible; None for an unreadable one."""
    if not locations:
        return []
    opened = [_system(location.url) for location in locations]
    system, paths = opened[0][0], [path for _, path in opened]
    together = len(paths) > 1 and all(other is system for other, _ in opened)
    try:
        found: dict[str, Any] = system.cat(paths, on_error="return") if together else {}
    except Exception:  # some protocols refuse the complete list for one file
        found = {}
    contents: list[bytes | None] = []
    for path, location in zip(paths, locations, strict=True):
        data = found.get(path)
        try:
            contents.append(bytes(data) if isinstance(data, bytes | bytearray) else location.read())
        except OSError:
            contents.append(None)
    return contents


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path in it."""
    # fsspec caches the systems of a process, and opens new ones in a forked worker.
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url} needs another package: {first_line(error)}") from error
    except Exception as error:  # every protocol has its own exceptions
        raise UserError(f"{url} cannot be opened: {first_line(error)}") from error
    return system, path


@contextmanager
def _storage(url: str) -> Iterator[tuple[Any, str]]:
    """As `_system`; errors of the storage become OSError."""
    system, path = _system(url)
    try:
        yield system, path
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} is not there") from error
    except Exception as error:  # every protocol has its own exceptions
        raise OSError(f"{url} cannot be read ({type(error).__name__}: {first_line(error)})") from error
