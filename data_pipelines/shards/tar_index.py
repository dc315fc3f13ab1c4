"""Random access to the samples of a webdataset tar: where each one starts, and its members when read.

A sample is a run of members whose names share everything up to the first dot. The index holds one (offset,
length) pair per sample; names and sizes stay in the tar headers, so that an index of a million samples is
small. Plain ustar headers are parsed here because `tarfile` would take most of the time. Neither tars nor
indexes are trusted: they are checked against the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from ...common.errors import UserError, first_line, one_line, shown
from ...common.files import atomic_file
from ...common.json_files import LARGEST_FILE, JsonError, parse_json
from ...common.paths import regular_file
from .storage import Location, read_many

logger = logging.getLogger(__name__)

_BLOCK = 512
_FINGERPRINT_BYTES = 65536
_REGULAR = (b"0", b"\0")
_PAX = (b"x", b"g")
_SIZE = re.compile(rb"[0-7]*")
#: Larger samples, or those of more members, are refused: a sample is held in memory at once.
LARGEST_SAMPLE = 1 << 29
_MOST_MEMBERS = 10_000


@dataclass(frozen=True)
class TarIndex:
    """Offsets and lengths in bytes of the samples of one tar, int64 arrays of equal length."""

    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)

    def span(self, position: int) -> tuple[int, int]:
        """(offset, length) of a sample."""
        return int(self.offsets[position]), int(self.lengths[position])

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TarIndex)
            and np.array_equal(self.offsets, other.offsets)
            and np.array_equal(self.lengths, other.lengths)
        )


class _DamagedTar(ValueError):
    """A header that cannot be followed; the message is one line."""


_EMPTY = TarIndex(np.zeros(0, np.int64), np.zeros(0, np.int64))


def index_path(tar: Path) -> Path:
    """The path of the index of `tar`: `train-00000.index.json` next to `train-00000.tar`."""
    return tar.with_suffix(".index.json")


def surviving_index(tar: Path) -> tuple[TarIndex, str | None]:
    """The index of all samples of `tar` before any damage, and a description of the damage, or None.

    The index is read from the file next to the tar if it fits; else it is built, and stored there if the tar
    is intact and the folder writable.
    """
    try:
        if not tar.exists():
            return _EMPTY, f"Shard not found: {tar}."
        regular_file(tar, "shard")
        if (index := stored_index(tar)) is not None:
            return index, None
        index, damage = scan_tar(tar)
        if damage is None:
            save_index(tar, index)
        return index, damage
    except UserError as error:
        return _EMPTY, str(error)
    except OSError as error:
        return _EMPTY, f"Shard {tar} cannot be read: {first_line(error)}"


def stored_index(tar: Path) -> TarIndex | None:
    """The index from the file next to `tar`; None where it is missing or does not fit the tar."""
    path, size = index_path(tar), tar.stat().st_size
    # An index is smaller than its tar, whose samples have a kilobyte or more.
    if not path.is_file() or path.stat().st_size > min(size + _FINGERPRINT_BYTES, LARGEST_FILE):
        return None
    return _parse_index(path.read_bytes(), size, _fingerprint(tar))


def scan_tar(tar: Path) -> tuple[TarIndex, str | None]:
    """As `surviving_index`, always from the headers of `tar`; nothing is stored. Raises OSError."""
    with tar.open("rb") as file:
        return _scan(file, tar.stat().st_size, str(tar))


def build_index(tar: Path) -> TarIndex:
    """The index from all headers of `tar`. UserError for a file that is not a tar or is damaged."""
    index, damage = scan_tar(tar)
    if damage is not None:
        raise UserError(damage)
    return index


def load_remote_indexes(tars: Sequence[Location]) -> list[tuple[TarIndex, str | None]]:
    """As `surviving_index`, for tars behind URLs; without a valid index file a tar is read to its end."""
    files = read_many([tar.with_suffix(".index.json") for tar in tars])
    stored = (None if data is None else _parse_index(data) for data in files)
    return [
        _scan_remote(tar) if index is None else (index, None) for tar, index in zip(tars, stored, strict=True)
    ]


def _scan_remote(tar: Location) -> tuple[TarIndex, str | None]:
    logger.warning("%s has no index next to it and is read through once", tar)
    try:
        size = tar.size()
        with tar.open() as file:
            return _scan(file, size, str(tar))
    except FileNotFoundError:
        return _EMPTY, f"Shard not found: {tar}."
    except Exception as error:  # every protocol has its own exceptions
        return _EMPTY, one_line(f"Shard {tar} cannot be read: {first_line(error)}")


def _parse_index(data: bytes, size: int = 2**62, fingerprint: str | None = None) -> TarIndex | None:
    """The content of an index file; None where it is damaged (it is only a cache) or of another tar."""
    try:
        fields = parse_json(data)
    except JsonError:
        return None
    if not isinstance(fields, dict) or fingerprint not in (None, fields.get("fingerprint")):
        return None
    offsets, lengths = fields.get("offsets"), fields.get("lengths")
    if not (_is_counts(offsets) and _is_counts(lengths)) or len(offsets) != len(lengths):
        return None
    index = TarIndex(np.array(offsets, np.int64), np.array(lengths, np.int64))
    ends = index.offsets + index.lengths  # cannot overflow: both are below 2^62
    edges = np.stack([index.offsets, ends], axis=1).reshape(-1)
    long_enough = (index.lengths >= _BLOCK).all()
    return index if long_enough and (np.diff(edges, append=size) >= 0).all() else None


def _is_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def save_index(tar: Path, index: TarIndex) -> None:
    """Store `index` next to `tar`, unless the folder is read-only or full."""
    arrays = {"offsets": index.offsets.tolist(), "lengths": index.lengths.tolist()}
    text = json.dumps({"fingerprint": _fingerprint(tar), **arrays}, separators=(",", ":"))
    if os.access(tar.parent, os.W_OK):
        with suppress(OSError), atomic_file(index_path(tar)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _scan(file: BinaryIO, size: int, tar: str) -> tuple[TarIndex, str | None]:
    """The samples before any damage, and the damage; the last sample may then lack members."""
    offsets: list[int] = []
    previous, position, damage = None, 0, None
    try:
        while position < size:
            file.seek(position)
            header = file.read(_BLOCK)
            if not header.strip(b"\0"):
                break
            kind, name, end = _next_header(header, position, size, tar)
            key = sample_key(name)
            if kind in _REGULAR and key != previous:
                offsets.append(position)
                previous = key
            position = end
    except _DamagedTar as error:
        damage = one_line(error)
    edges = np.array([*offsets, position], np.int64)
    return TarIndex(edges[:-1], np.diff(edges)), damage


def _next_header(header: bytes, position: int, size: int, tar: str) -> tuple[bytes, str, int]:
    """(type flag, name, end of the member) of an intact header whose member lies within the file."""
    if len(header) < _BLOCK:
        raise _DamagedTar(f"Shard {tar} is cut short: it ends within a header.")
    kind, name, length = _parse_header(header, tar)
    stated = header[148:156].strip(b"\0 ")
    actual = sum(header) - sum(header[148:156]) + 8 * ord(" ")  # the sum counts as spaces itself
    if not _SIZE.fullmatch(stated) or int(stated or b"0", 8) != actual:
        raise _DamagedTar(f"Shard {tar} is damaged at byte {position}.")
    end = position + _BLOCK + _padded(length)
    if end > size:
        raise _DamagedTar(f"Shard {tar} is cut short: {shown(name)} reaches beyond the end of the file.")
    return kind, name, end


def read_span(file: BinaryIO, offset: int, length: int) -> bytes:
    """The bytes of one sample. Raises OSError where they cannot be read or are too many."""
    require_readable(length)
    file.seek(offset)
    return file.read(length)


def require_readable(length: int) -> None:
    """Raise OSError for a sample of more than `LARGEST_SAMPLE` bytes."""
    if length > LARGEST_SAMPLE:
        raise OSError(f"the sample has {length} bytes; at most {LARGEST_SAMPLE} are read")


def stored_size(content: bytes) -> int:
    """The size in a tar of a member of this content, in bytes."""
    return _BLOCK + _padded(len(content))


def sample_members(span: bytes, tar: Path | Location) -> tuple[str, dict[str, bytes]]:
    """(key, {name after the key: content}) of the bytes of one sample. ValueError for a damaged sample."""
    members: dict[str, bytes] = {}
    key, position, count = "", 0, 0
    while (body := position + _BLOCK) <= len(span):
        count += 1
        if count > _MOST_MEMBERS:
            raise _DamagedTar(f"the sample has more than {_MOST_MEMBERS} members")
        kind, name, length = _parse_header(span[position:body], tar)
        if body + length > len(span):
            raise _DamagedTar(f"{shown(name)} reaches beyond the end of its sample")
        if kind in _REGULAR:
            key = sample_key(name)
            members[name[len(key) + 1 :]] = span[body : body + length]
        position = body + _padded(length)
    return key, members


def sample_key(name: str) -> str:
    """The name of a member up to the first dot of its last path component."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _parse_header(header: bytes, tar: Path | Location | str) -> tuple[bytes, str, int]:
    """(type flag, name, size) of one ustar header."""
    kind, size = header[156:157], header[124:136].strip(b"\0 ")
    if header[257:262] != b"ustar" or kind not in _REGULAR + _PAX + (b"5",) or not _SIZE.fullmatch(size):
        raise _DamagedTar(
            f"{tar} is not a shard this package can read: expected a plain tar of short member names."
        )
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
    prefix = header[345:500].split(b"\0", 1)[0].decode("utf-8", "replace")
    return kind, f"{prefix}/{name}" if prefix else name, int(size or b"0", 8)


def _padded(length: int) -> int:
    return (length + _BLOCK - 1) // _BLOCK * _BLOCK


def _fingerprint(tar: Path) -> str:
    """A hash of the size, the first and the last bytes: unlike a time stamp, it survives copying."""
    size = tar.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with tar.open("rb") as file:
        digest.update(file.read(_FINGERPRINT_BYTES))
        file.seek(max(0, size - _FINGERPRINT_BYTES))
        digest.update(file.read())
    return digest.hexdigest()
