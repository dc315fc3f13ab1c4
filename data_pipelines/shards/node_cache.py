"""Shards behind URLs, kept on the local disk of a machine for all of its processes.

A shard is downloaded once, by the process that has its lock; until it is complete, everyone reads records by
ranges. Only complete files of the right size and SHA-256 get their name. Room is made by removing the shards
that were not read for the longest time, which are those that a window of shards has left.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...common.errors import UserError, first_line
from ...common.files import atomic_file
from .storage import Location

logger = logging.getLogger(__name__)

_CHUNK = 1 << 22
_ABANDONED = 3600.0  # seconds without a write, after which an unfinished download is removed
_TOUCH_EVERY = 30.0  # seconds
_UNFINISHED = ".part"
#: Nothing else in the folder is touched: it may hold a user's files.
_OURS = re.compile(r"[0-9a-f]{24}-.*\.(tar|index)\Z|\.[0-9a-f]{24}-.*\.part\Z")


@dataclass
class NodeCache:
    """Up to `most_bytes` of shards in `folder`, on a disk of this machine. Picklable, safe to fork.

    Errors:
        UserError where `folder` cannot be made or belongs to somebody else.
    """

    folder: Path
    most_bytes: int
    _touched: dict[Path, float] = field(default_factory=dict, repr=False)
    _thread: threading.Thread | None = field(default=None, repr=False)
    _process: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.folder.stat().st_uid
        except OSError as error:
            raise UserError(f"data.cache {self.folder} cannot be made: {first_line(error)}") from None
        if hasattr(os, "getuid") and owner != os.getuid():
            raise UserError(f"data.cache {self.folder} belongs to another user: give another folder")

    @classmethod
    def default_folder(cls) -> Path:
        """In the machine's folder for temporary files."""
        user = os.getuid() if hasattr(os, "getuid") else "user"
        return Path(tempfile.gettempdir()) / f"dualtoken-shards-{user}"

    def find(self, shard: Location, sha256: str) -> Path | None:
        """The local copy of a shard, which then counts as read now; None where it is not there."""
        path = self._path(shard, sha256)
        now = time.time()
        if now - self._touched.get(path, 0.0) > _TOUCH_EVERY:
            try:
                os.utime(path)
            except OSError:
                self._touched.pop(path, None)
                return None
            self._touched[path] = now
        return path

    def request(self, shard: Location, size: int, sha256: str) -> None:
        """Begin to `fetch` a shard in the background, unless this process is busy with another one."""
        if self._process != os.getpid():  # a forked worker has the attribute, not the thread
            self._process, self._thread = os.getpid(), None
        if self._thread is None or not self._thread.is_alive():
            given = shard, size, sha256
            self._thread = threading.Thread(target=self._try_to_fetch, args=given, daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait for what this process downloads in the background."""
        if self._thread is not None and self._process == os.getpid():
            self._thread.join()

    def fetch(self, shard: Location, size: int, sha256: str) -> Path | None:
        """Download a shard of `size` bytes, or find it.

        None while another process downloads it, and where it has no room. OSError where it cannot be read, or
        its content is not what the manifest states.
        """
        path = self._path(shard, sha256)
        # 256 locks for all shards: those that share one are downloaded one after the other.
        with suppress(Timeout), FileLock(self.folder / f".lock-{path.name[:2]}", timeout=0):
            if (found := self.find(shard, sha256)) is not None:
                return found
            for unfinished in self.folder.glob(f".{path.name}-*{_UNFINISHED}"):  # of a killed process
                unfinished.unlink(missing_ok=True)
            if (temporary := self._with_room(path.name, size)) is None:
                return None
            try:
                _download(shard, temporary, sha256)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
            return path
        return None

    def small_file(self, file: Location, key: str) -> Path:
        """The local copy of a small file whose content has the name `key`: whoever is first reads it.

        OSError where it cannot be read or written.
        """
        path = self._path(file, key)
        with FileLock(self.folder / f".lock-{path.name[:2]}"):
            if self.find(file, key) is None:
                content = file.read()
                with atomic_file(path) as temporary:
                    temporary.write_bytes(content)
        return path

    def _try_to_fetch(self, shard: Location, size: int, sha256: str) -> None:
        try:
            self.fetch(shard, size, sha256)
        except OSError as error:
            logger.warning("%s is not cached in %s: %s", shard, self.folder, first_line(error))

    def _path(self, shard: Location, sha256: str) -> Path:
        digest = hashlib.sha256(f"{shard.url} {sha256}".encode()).hexdigest()
        return self.folder / f"{digest[:24]}-{shard.name}"

    def _with_room(self, name: str, size: int) -> Path | None:
        """An unfinished file of `size` bytes, which counts at once; None where there is no room for it."""
        with FileLock(self.folder / ".lock"):
            files = [path for path in self.folder.iterdir() if _OURS.match(path.name)]
            kept = {path: about for path in files if (about := _about(path)) is not None}
            total = size + sum(about.st_size for about in kept.values())
            for path in sorted(kept, key=lambda path: kept[path].st_mtime):
                unfinished = path.name.endswith(_UNFINISHED)
                if unfinished and time.time() - kept[path].st_mtime < _ABANDONED:
                    continue
                if total > self.most_bytes or unfinished:
                    path.unlink(missing_ok=True)
                    total -= kept[path].st_size
            if total > self.most_bytes or size > shutil.disk_usage(self.folder).free:
                return None
            handle, made = tempfile.mkstemp(prefix=f".{name}-", suffix=_UNFINISHED, dir=self.folder)
            os.truncate(handle, size)
            os.close(handle)
            return Path(made)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_touched": {}, "_thread": None, "_process": 0}


def _about(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _download(shard: Location, path: Path, sha256: str) -> None:
    """Write a shard to `path`, which has the size that it should have. OSError where it is another."""
    size, digest, written = path.stat().st_size, hashlib.sha256(), 0
    with path.open("r+b") as file:
        for offset in range(0, size, _CHUNK):
            chunk = shard.read(offset, min(_CHUNK, size - offset))
            digest.update(chunk)
            written += file.write(chunk)
    if written != size or digest.hexdigest() != sha256:
        raise OSError(f"{shard} is not the file that its manifest describes")
