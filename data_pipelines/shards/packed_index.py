"""One file with the indexes of all shards of a folder, mapped into memory instead of parsed.

`shards.index` makes the start of a run independent of the number of records: nothing is read before a record
of a shard is, and all processes of a machine share its pages. It only repeats the `.index.json` next to the
tars, from which readers make it where it is missing. Layout: 8 bytes of magic, the length of the header
(uint64), the header (JSON: `shards`, a list of [file, records, bytes, SHA-256]), and for every shard the
first 512-byte block of each sample and the end of the last one (uint32).
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...common.files import atomic_file
from ...common.json_files import JsonError, parse_json
from ...common.outputs import SHARDS_INDEX
from .node_cache import NodeCache
from .storage import Location
from .tar_index import TarIndex, stored_index

_MAGIC = b"DTSHARD1"
_BLOCK = 512
_HEADER = len(_MAGIC) + 8
_EDGE = 4
_EDGES = struct.Struct("<II")

Entry = Mapping[str, Any]


@dataclass
class PackedIndex:
    """The indexes of shards by file name; picklable, and then opened again."""

    path: Path | None
    data: Any = field(repr=False)  # bytes, or a map of the file
    places: dict[tuple[str, int, int, str], int] = field(repr=False)

    @classmethod
    def open(cls, path: Path) -> PackedIndex | None:
        """Map a file; None where it is missing or damaged."""
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # an empty file cannot be mapped
            return None
        places = _places(data)
        return None if places is None else cls(path, data, places)

    @classmethod
    def of(cls, data: bytes) -> PackedIndex | None:
        """The content of a file; None where it is damaged."""
        places = _places(data)
        return None if places is None else cls(None, data, places)

    def shard(self, entry: Entry) -> PackedShard | None:
        """The index of a shard, given by its entry of the manifest; None where it is not in the file."""
        place = self.places.get(_key(entry))
        return None if place is None else PackedShard(self, place, entry["records"], entry["bytes"])

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "data": self.data if self.path is None else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        path, data = state["path"], state["data"]
        opened = PackedIndex.of(data) if path is None else PackedIndex.open(path)
        found = opened or PackedIndex(path, b"", {})
        self.path, self.data, self.places = path, found.data, found.places


@dataclass(frozen=True)
class PackedShard:
    """Where the samples of one tar of `size` bytes are, as `TarIndex` states it."""

    packed: PackedIndex = field(repr=False)
    place: int
    records: int
    size: int

    def __len__(self) -> int:
        return self.records

    def span(self, position: int) -> tuple[int, int]:
        """(offset, length) in bytes of a sample. OSError where that is impossible."""
        begin, end = _EDGES.unpack_from(self.packed.data, self.place + _EDGE * position)
        if not begin < end <= self.size // _BLOCK:
            raise OSError(f"{SHARDS_INDEX} is damaged: delete it, it is made again")
        return begin * _BLOCK, (end - begin) * _BLOCK


def packed_shards(
    folder: Path | Location,
    manifest: Mapping[str, Any],
    entries: Sequence[Entry],
    cache: NodeCache | None = None,
) -> list[PackedShard | None]:
    """The packed index of each of `entries`, some shards of a folder and its manifest.

    None for one that has to be looked at: it is missing, has another size than the manifest states, or is not
    in the file. A local folder without the file gets one; that of a folder behind a URL is mapped from the
    `cache`, without one every process holds it.
    """
    if isinstance(folder, Location):
        packed = _fetched(folder / SHARDS_INDEX, manifest, cache)
        return [None if packed is None else packed.shard(entry) for entry in entries]
    packed = PackedIndex.open(folder / SHARDS_INDEX)
    if packed is None or not packed.places.keys() >= set(map(_key, manifest["shards"])):
        save_packed_index(folder, manifest["shards"])
        packed = PackedIndex.open(folder / SHARDS_INDEX)
    if packed is None:
        return [None] * len(entries)
    sizes = _sizes(folder)
    return [packed.shard(one) if sizes.get(one["file"]) == one["bytes"] else None for one in entries]


def _fetched(file: Location, manifest: Mapping[str, Any], cache: NodeCache | None) -> PackedIndex | None:
    try:
        if cache is None:
            return PackedIndex.of(file.read())
        shards = hashlib.sha256(repr(list(map(_key, manifest["shards"]))).encode()).hexdigest()
        return PackedIndex.open(cache.small_file(file, shards))
    except OSError:
        return None


def _sizes(folder: Path) -> dict[str, int]:
    """The size of every tar in a folder."""
    sizes = {}
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            if entry.name.endswith(".tar"):
                with suppress(OSError):
                    sizes[entry.name] = entry.stat().st_size
    return sizes


def save_packed_index(folder: Path, entries: Sequence[Entry]) -> None:
    """Write the file for the shards of a manifest, unless one has no index or the folder is read-only."""
    indexes = []
    for entry in entries:
        try:
            index = stored_index(folder / entry["file"])
        except OSError:
            return
        if index is None or len(index) != entry["records"]:
            return
        indexes.append(index)
    if os.access(folder, os.W_OK):
        with suppress(OSError):
            write_packed_index(folder, entries, indexes)


def write_packed_index(folder: Path, entries: Sequence[Entry], indexes: Sequence[TarIndex]) -> None:
    """Write the file for shards and their indexes, unless one has gaps between its samples."""
    parts = [blocks for index in indexes if (blocks := _blocks(index)) is not None]
    if len(parts) < len(indexes):
        return
    shards = [[entry["file"], entry["records"], entry["bytes"], entry["sha256"]] for entry in entries]
    text = json.dumps({"shards": shards}, separators=(",", ":")).encode()
    text += b" " * (-(_HEADER + len(text)) % 8)
    with atomic_file(folder / SHARDS_INDEX) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
        for blocks in parts:
            file.write(blocks.tobytes())


def _blocks(index: TarIndex) -> np.ndarray | None:
    """The edges of the samples in blocks; None where there are gaps between them, or the tar is too large."""
    if not len(index):
        return np.zeros(1, "<u4")
    ends = index.offsets + index.lengths
    edges = np.append(index.offsets, ends[-1])
    if (edges % _BLOCK).any() or (ends[:-1] != index.offsets[1:]).any() or edges[-1] >= _BLOCK << 32:
        return None
    return (edges // _BLOCK).astype("<u4")


def _key(entry: Entry) -> tuple[str, int, int, str]:
    return entry["file"], entry["records"], entry["bytes"], entry["sha256"]


def _places(data: Any) -> dict[tuple[str, int, int, str], int] | None:
    """Where the edges of each shard begin, from the header; None for a damaged file."""
    length = int.from_bytes(data[len(_MAGIC) : _HEADER], "little")
    if data[: len(_MAGIC)] != _MAGIC or length > len(data) - _HEADER:
        return None
    try:
        header = parse_json(bytes(data[_HEADER : _HEADER + length]))
        shards = [(str(file), int(n), int(size), str(sha)) for file, n, size, sha in header["shards"]]
    except (JsonError, TypeError, ValueError, KeyError):
        return None
    starts = _HEADER + length + _EDGE * np.cumsum([0, *(records + 1 for _, records, _, _ in shards)])
    if any(records < 0 for _, records, _, _ in shards) or starts[-1] != len(data):
        return None
    return dict(zip(shards, starts.tolist(), strict=False))
