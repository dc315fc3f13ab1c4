"""Read samples from WebDataset tars of any source: the members of one key, in any order.

A member's key is its name up to the last dot, its ending the rest in lower case: `img.v1.jpg` and
`img.v1.txt` are one sample. Names with several dots may also belong to another sample (`0.seg.png` to
`0.jpg` and `0.txt`): a key that is not a complete sample is skipped where a sample has the name up to its
first dot as key.
"""

from __future__ import annotations

import gzip
import tarfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import UserError, first_line, one_line
from ...common.images.reading import is_image_name
from ...common.images.sources import LARGEST_IMAGE_FILE
from ...common.json_files import is_encodable
from ...common.paths import regular_file
from ..shards.tar_index import sample_key
from .samples import LARGEST_TEXT_FILE, Rejected

#: (offset, length) of a member's content in its tar; the content itself where the tar is compressed.
Content = tuple[int, int] | bytes

TEXT_ENDINGS = ("txt", "json")
#: Most keys, and bytes of their members, that wait for further members before the oldest is complete.
_WINDOW_KEYS = 10_000
_WINDOW_BYTES = 256_000_000
_MOST_ENDINGS = 50  # counted by name
_MOST_ZEROS = 1 << 26  # bytes after an end mark within which another tar may start
_COMPRESSIONS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class TarSample:
    """The members of one key, by their endings."""

    tar: Path
    key: str
    members: dict[str, Content]


def tar_samples(tar: Path, skipped: Counter[str]) -> Iterator[TarSample | Rejected]:
    """The samples of a tar, plain or compressed with gzip, in the order of their first members.

    Of a plain tar only headers are read. Every fault (damage, a duplicate key, members that are links or too
    big, names that are not UTF-8) gives a Rejected. `skipped` counts ignored members by kind. Concatenated
    tars in one file are all read.
    """
    keys = _Keys(tar, skipped)
    try:
        for member in _members(tar, skipped):
            yield from keys.add(member)
    except UserError as error:
        yield Rejected(tar.name, str(error))
        return
    except Exception as error:
        # tarfile and gzip raise nearly anything on foreign bytes. The members before the damage are used.
        yield from keys.rest()
        yield Rejected(tar.name, f"damaged tar, the rest of it is lost ({first_line(error)})")
        return
    yield from keys.rest()


# --- members ----------------------------------------


@dataclass(frozen=True)
class _Member:
    key: str
    ending: str
    content: Content | None
    problem: str = ""


def _members(tar: Path, skipped: Counter[str]) -> Iterator[_Member]:
    """The members of all tars in a file. UserError for other files, nearly any exception at damage."""
    with _opened(tar) as (file, size):
        start: int | None = 0
        while start is not None:
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                end = start
                while (info := archive.next()) is not None:
                    archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps them all
                    if info.size < 0 or archive.offset <= end:
                        raise tarfile.ReadError("a member of negative size")
                    end = archive.offset
                    # A sparse member has its unpacked size in the header; the tar holds less.
                    stored = archive.offset if info.issparse() else info.offset_data + info.size
                    if size is not None and stored > size:
                        raise tarfile.ReadError(f"cut short within '{info.name}'")
                    if (member := _member(file, info, size is None, skipped)) is not None:
                        yield member
                start = _next_tar(file, archive.offset)


def _member(file: Any, info: tarfile.TarInfo, read: bool, skipped: Counter[str]) -> _Member | None:
    """The member of a header; None for a folder and for a hidden member, which is counted."""
    name = info.name
    base = name.rpartition("/")[2]
    if info.isdir():
        return None
    if base.startswith(".") or "__MACOSX" in name.split("/"):
        skipped["hidden members, such as ._*"] += 1
        return None
    key, _, ending = name.rpartition(".") if "." in base else (name, "", "")
    ending = ending.lower()
    if ending not in TEXT_ENDINGS and not is_image_name(f"x.{ending}"):
        _count_ending(ending, skipped)
        return _Member(key, ending, None)
    if info.issparse():
        return _Member(key, ending, None, f"its .{ending} is a sparse file")
    if not info.isreg():
        return _Member(key, ending, None, f"its .{ending} is a link or a device")
    if info.size > (LARGEST_TEXT_FILE if ending in TEXT_ENDINGS else LARGEST_IMAGE_FILE):
        if read:
            raise tarfile.ReadError(f"'{name}' has {info.size} bytes")
        return _Member(key, ending, None, f"its .{ending} has {info.size} bytes")
    if not read:
        return _Member(key, ending, (info.offset_data, info.size))
    file.seek(info.offset_data)
    content = file.read(info.size)
    if len(content) < info.size:
        raise tarfile.ReadError(f"cut short within '{name}'")
    return _Member(key, ending, content)


def _count_ending(ending: str, skipped: Counter[str]) -> None:
    what = f"members with the ending .{one_line(ending, 20)}" if ending else "members without an ending"
    skipped[what if what in skipped or len(skipped) < _MOST_ENDINGS else "members with other endings"] += 1


@contextmanager
def _opened(tar: Path) -> Iterator[tuple[Any, int | None]]:
    """(file with read, seek and tell; its size, None where compressed). UserError for unsupported files."""
    size = regular_file(tar, "tar").stat().st_size
    with tar.open("rb") as file:
        magic = file.read(6)
        file.seek(0)
        for start, name in _COMPRESSIONS.items():
            if magic.startswith(start):
                raise UserError(f"compressed with {name}: unpack it first; .tar and .tar.gz are read")
        if magic.startswith(_GZIP):
            with gzip.open(file) as unpacked:
                yield _BoundedReads(unpacked), None
        else:
            yield _BoundedReads(file), size


class _BoundedReads:
    """A file that limits a single read to the largest member: damaged headers can ask for any size."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= LARGEST_IMAGE_FILE + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return bytes(self._file.read(size))


def _next_tar(file: Any, end: int) -> int | None:
    """The start of the next tar after the one that ends at `end`, or None.

    Raises tarfile.ReadError where the end mark is missing: tarfile takes a broken header for the end.
    """
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end mark at byte {end}")
    position = end + tarfile.BLOCKSIZE
    while chunk := file.read(1 << 20):
        if content := chunk.lstrip(b"\0"):
            found = position + len(chunk) - len(content)
            return found - (found - end) % tarfile.BLOCKSIZE
        position += len(chunk)
        if position - end > _MOST_ZEROS:
            raise tarfile.ReadError(f"nothing but zeros from byte {end} on")
    return None


# --- keys ----------------------------------------


@dataclass
class _Group:
    """The members of one key read so far; `again` for a key that was complete before."""

    again: bool
    members: dict[str, Content] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    problem: str = ""

    def images(self) -> list[str]:
        return [ending for ending in self.members if ending not in TEXT_ENDINGS]

    def is_complete(self) -> bool:
        return 0 < len(self.images()) < len(self.members)


class _Keys:
    """Groups members by key, within a window of keys and bytes."""

    def __init__(self, tar: Path, skipped: Counter[str]) -> None:
        self._tar, self._skipped = tar, skipped
        self._open: OrderedDict[str, _Group] = OrderedDict()
        self._closed: OrderedDict[str, None] = OrderedDict()
        self._bytes = 0

    def add(self, member: _Member) -> Iterator[TarSample | Rejected]:
        """Add a member; yield the samples that leave the window."""
        group = self._open.setdefault(member.key, _Group(again=member.key in self._closed))
        if member.content is not None and member.ending not in group.members:
            group.members[member.ending] = member.content
            self._bytes += _memory(member.content)
        if member.content is not None or member.problem or len(group.seen) < _MOST_ENDINGS:
            group.seen[member.ending] += 1
        group.problem = group.problem or member.problem
        while len(self._open) > _WINDOW_KEYS or (self._bytes > _WINDOW_BYTES and len(self._open) > 1):
            yield from self._close()

    def rest(self) -> Iterator[TarSample | Rejected]:
        """The samples that are still in the window."""
        while self._open:
            yield from self._close()

    def _close(self) -> Iterator[TarSample | Rejected]:
        """The sample of the oldest key, and its faults."""
        key, group = self._open.popitem(last=False)
        self._bytes -= sum(map(_memory, group.members.values()))
        self._closed[key] = None
        if len(self._closed) > _WINDOW_KEYS:
            self._closed.popitem(last=False)
        name = f"{self._tar.name}: {key}"
        owner = sample_key(key)
        if owner != key and not group.is_complete() and (owner in self._open or owner in self._closed):
            for ending in group.members:
                _count_ending(f"{key[len(owner) + 1 :]}.{ending}", self._skipped)
        elif group.again:
            yield Rejected(name, "its key comes a second time, far after the first")
        elif not is_encodable(key):
            yield Rejected(name, "its name in the tar is not UTF-8")
        elif group.problem:
            yield Rejected(name, group.problem)
        elif not group.members:
            endings = (f".{one_line(one, 20)}" if one else "no ending" for one in sorted(group.seen)[:5])
            yield Rejected(name, f"no image, only {', '.join(endings)}")
        else:
            yield TarSample(self._tar, key, group.members)
            if (more := len(group.images()) - 1) > 0:
                self._skipped["members that are another image of their key"] += more
            for _ in range(max(group.seen[ending] for ending in group.members) - 1):
                yield Rejected(name, "its key comes a second time; the first is used")


def _memory(content: Content) -> int:
    """The bytes of memory of a member's content."""
    return len(content) if isinstance(content, bytes) else 0
