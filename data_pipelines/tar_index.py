"""Random access to the samples of a webdataset tar: where each one starts, and its members when read.

A sample is a run of members whose names share everything up to the first dot. The index holds one (offset,
length) pair a sample; names and sizes are read from the tar headers inside the sample itself, so an index of
a million samples stays small. Plain ustar headers are read here directly because `tarfile` would take most of
the time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..common.errors import UserError
from ..common.files import atomic_file
from .storage import Location, read_many

logger = logging.getLogger(__name__)

_BLOCK = 512
_FINGERPRINT_BYTES = 65536
_REGULAR = (b"0", b"\0")
_PAX = (b"x", b"g")


@dataclass(frozen=True)
class TarIndex:
    """Offsets and lengths in bytes of the samples of one tar, int64 arrays of equal length."""

    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)


def index_path(tar: Path) -> Path:
    """Where the index of `tar` is kept: `train-00000.index.json` beside `train-00000.tar`."""
    return tar.with_suffix(".index.json")


def load_index(tar: Path) -> TarIndex:
    """The index of `tar`: from the file beside it if that belongs to it, else built, and kept if possible."""
    if not tar.is_file():
        raise UserError(f"Shard not found: {tar}.")
    fingerprint = _fingerprint(tar)
    cached = index_path(tar)
    if cached.is_file():
        index = _parse_index(cached.read_bytes(), fingerprint)
        if index is not None:
            return index
    index = build_index(tar)
    save_index(tar, index, fingerprint)
    return index


def load_remote_indexes(tars: Sequence[Location]) -> list[TarIndex]:
    """The indexes of tars behind URLs: the files beside them, which their writer made and nothing checks;
    a tar without one is read through once. Raises UserError for a tar that is not there."""
    return [
        (None if data is None else _parse_index(data)) or _scan_remote(tar)
        for tar, data in zip(tars, read_many([tar.with_suffix(".index.json") for tar in tars]), strict=True)
    ]


def _scan_remote(tar: Location) -> TarIndex:
    logger.warning("%s has no index beside it and is read through once", tar)
    try:
        size = tar.size()
        with tar.open() as file:
            return _scan(file, size, str(tar))
    except FileNotFoundError:
        raise UserError(f"Shard not found: {tar}.") from None


def _parse_index(data: bytes, fingerprint: str | None = None) -> TarIndex | None:
    """An index file's content; None where it is damaged (it is only a cache) or of another tar."""
    try:
        fields = json.loads(data)
        if fingerprint is None or fields["fingerprint"] == fingerprint:
            return TarIndex(np.array(fields["offsets"], np.int64), np.array(fields["lengths"], np.int64))
    except (ValueError, KeyError, TypeError):
        pass
    return None


def save_index(tar: Path, index: TarIndex, fingerprint: str | None = None) -> None:
    """Keep `index` beside `tar`; a read-only folder is left alone."""
    data = {
        "fingerprint": fingerprint or _fingerprint(tar),
        "offsets": index.offsets.tolist(),
        "lengths": index.lengths.tolist(),
    }
    if not os.access(tar.parent, os.W_OK):
        return
    try:
        with atomic_file(index_path(tar)) as temporary:
            temporary.write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")
    except OSError:
        return


def build_index(tar: Path, cut_short: bool = False) -> TarIndex:
    """Scan all headers of `tar`. Raises UserError for something that is not a tar or, unless `cut_short` tars
    are taken as far as they go, is cut short."""
    with tar.open("rb") as file:
        return _scan(file, tar.stat().st_size, str(tar), cut_short)


def _scan(file: BinaryIO, size: int, tar: str, cut_short: bool = False) -> TarIndex:
    offsets: list[int] = []
    lengths: list[int] = []
    previous, start, position = None, 0, 0
    while position < size:
        file.seek(position)
        header = file.read(_BLOCK)
        if not header.strip(b"\0"):
            break
        if cut_short and len(header) < _BLOCK:
            previous = None  # the sample at the end may lack members
            break
        kind, name, length = _parse_header(header, tar)
        end = position + _BLOCK + _padded(length)
        if end > size:
            if cut_short:
                previous = None
                break
            raise UserError(f"Shard {tar} is cut short: '{name}' reaches beyond the end of the file.")
        key = sample_key(name)
        if kind in _REGULAR and key != previous:
            if previous is not None:
                offsets.append(start)
                lengths.append(position - start)
            previous, start = key, position
        position = end
    if previous is not None:
        offsets.append(start)
        lengths.append(position - start)
    return TarIndex(np.array(offsets, np.int64), np.array(lengths, np.int64))


def sample_members(span: bytes, tar: Path | Location) -> tuple[str, dict[str, bytes]]:
    """(key, {name after the key: content}) of the bytes of one sample."""
    members: dict[str, bytes] = {}
    key, position = "", 0
    while position + _BLOCK <= len(span):
        kind, name, length = _parse_header(span[position : position + _BLOCK], tar)
        body = position + _BLOCK
        if kind in _REGULAR:
            key = sample_key(name)
            members[name[len(key) + 1 :]] = span[body : body + length]
        position = body + _padded(length)
    return key, members


def sample_key(name: str) -> str:
    """A member's name up to the first dot of its last path component."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _parse_header(header: bytes, tar: Path | Location | str) -> tuple[bytes, str, int]:
    """(type flag, name, size) of one ustar header."""
    kind = header[156:157]
    if header[257:262] != b"ustar" or kind not in _REGULAR + _PAX + (b"5",):
        raise UserError(
            f"{tar} is not a shard this package can read: expected a plain tar of short member names."
        )
    name = header[:100].split(b"\0", 1)[0].decode("utf-8", "replace")
    prefix = header[345:500].split(b"\0", 1)[0].decode("utf-8", "replace")
    return kind, f"{prefix}/{name}" if prefix else name, int(header[124:136].strip(b"\0 ") or b"0", 8)


def _padded(length: int) -> int:
    return (length + _BLOCK - 1) // _BLOCK * _BLOCK


def _fingerprint(tar: Path) -> str:
    """Hash of the size, the first and the last bytes: it survives copying, unlike a time stamp."""
    size = tar.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with tar.open("rb") as file:
        digest.update(file.read(_FINGERPRINT_BYTES))
        file.seek(max(0, size - _FINGERPRINT_BYTES))
        digest.update(file.read())
    return digest.hexdigest()
