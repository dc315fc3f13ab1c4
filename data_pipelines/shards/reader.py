"""Reading records out of shards: map-style access by index, local or behind URLs."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...common.errors import UserError, first_line, shown
from ...common.values import flag
from ..records import Record, RecordError
from .format import manifest_code_shape, read_manifest
from .node_cache import NodeCache
from .packed_index import PackedShard, packed_shards
from .retries import retried
from .sample_codec import CodeShape, decode_record
from .storage import Location, locate
from .tar_index import (
    TarIndex,
    load_remote_indexes,
    read_span,
    require_readable,
    sample_members,
    surviving_index,
)

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | Location

_OPEN_FILES = 64
#: A replacement for a damaged record may be in any shard: one read is no reason to download a shard.
_RECORDS_BEFORE_REQUEST = 3
#: The share of a damaged folder's records that must be readable.
_LEAST_READABLE = 0.01
_ADVICE = ": `dualtoken prepare check` names all damage; prepare the data again"


class ShardDataset:
    """Map-style access to the records of shards; picklable, safe to fork, and it opens files lazily.

    Images are PIL images that decode at first use, or cached codes: uint16 arrays (H, W, D) of the depth and
    number of codes that the manifest states. An unreadable or invalid record raises RecordError; a read that
    fails is tried again first (see `retries`).

    Args:
        source: a folder with a manifest, a tar, or a list of these, each a path or a URL (`s3://…`).
        split: of the folders, "all" for every one; single tars have none.
        tolerant: missing or damaged shards of a folder are logged, and only their lost records raise
            RecordError. So are those of a single tar for which `records` is given.
        records: the number of records that a single tar should have.
        cache: for shards of folders behind URLs, each from a few reads of it on.

    Errors:
        UserError for a missing source or split, an invalid manifest, a missing or damaged shard (with
        `tolerant` only where 99 % of the records are lost).
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        split: str = "train",
        tolerant: bool = False,
        records: int | None = None,
        cache: NodeCache | None = None,
    ) -> None:
        flag(tolerant, "tolerant")
        self.split = split
        self.manifests: list[dict[str, Any]] = []
        self.shards: list[Path | Location] = []
        self._shapes: list[CodeShape | None] = []
        self._cache, self._requests = cache, Counter[int]()
        self._entries: dict[int, dict[str, Any]] = {}  # of the shards that the cache may keep
        expected: list[int | None] = []  # records of each shard; None for a tar without a manifest
        packed: list[PackedShard | None] = []  # without `tolerant` every shard is looked at
        for item in _located(source):
            if _is_folder(item):
                entries = self._add_folder(item)
                expected += [entry["records"] for entry in entries]
                looked_up = packed_shards(item, self.manifests[-1], entries, cache) if tolerant else []
                packed += looked_up or [None] * len(entries)
            else:
                self.shards.append(item)
                self._shapes.append(None)
                expected.append(records)
                packed.append(None)
        self._indexes = _load_indexes(self.shards, expected, packed, tolerant)
        lengths = [
            max(len(i), n or 0) if tolerant else len(i) for i, n in zip(self._indexes, expected, strict=True)
        ]
        readable, total = sum(map(len, self._indexes)), sum(lengths)
        if records is None and readable < _LEAST_READABLE * total:
            raise UserError(
                f"{shown(source)}: {total - readable} of {total} records are lost, their shards are missing "
                "or damaged: prepare the data again"
            )
        self._starts = np.cumsum([0, *lengths])
        self._files: dict[int, BinaryIO] = {}
        self._process = os.getpid()
        self._failing: set[int] = set()  # shards whose last read failed, which get a single attempt

    def _add_folder(self, folder: Path | Location) -> list[dict[str, Any]]:
        """Add the folder's shards, and return their entries of its manifest."""
        manifest = read_manifest(folder)
        wanted = self.split if isinstance(self.split, str) else None
        shards = [s for s in manifest["shards"] if wanted in ("all", s["split"])]
        if not shards:
            known = sorted({shard["split"] for shard in manifest["shards"]})
            has = ", ".join(known) or "no records"
            raise UserError(f"{folder} has no split {shown(self.split)}: it has {has}.")
        self.manifests.append(manifest)
        if self._cache is not None and isinstance(folder, Location):
            self._entries |= dict(enumerate(shards, len(self.shards)))
        self.shards += [folder / shard["file"] for shard in shards]
        self._shapes += [manifest_code_shape(manifest)] * len(shards)
        return shards

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, when the dataset is one folder."""
        if len(self.manifests) != 1:
            raise UserError(f"This dataset has {len(self.manifests)} manifests, not one: use `manifests`.")
        return self.manifests[0]

    @property
    def shard_lengths(self) -> list[int]:
        """Records of each shard, lost ones included."""
        return [int(length) for length in np.diff(self._starts)]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Record:
        return self.record(index)

    def __iter__(self) -> Iterator[Record]:
        return map(self.record, range(len(self)))

    def record(self, index: int, load_images: bool = True) -> Record:
        """Record `index`; without `load_images` its image parts keep the names of their members."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        shard = self.shards[number]
        try:
            span = self._read(number, index - int(self._starts[number]))
            return decode_record(sample_members(span, shard)[1], load_images, self._shapes[number])
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise RecordError(f"Record {index} of '{shard.name}' cannot be used: {reason}") from error

    def texts(self) -> Iterator[str]:
        """Every text of every record, in order; unreadable records are skipped."""
        for index in range(len(self)):
            with suppress(RecordError):
                yield from self.record(index, load_images=False).texts()

    def _read(self, number: int, position: int) -> bytes:
        """The bytes of sample `position` of a shard. Raises OSError."""
        if position >= len(self._indexes[number]):
            raise OSError("the shard was missing or damaged when it was opened")
        offset, length = self._indexes[number].span(position)
        require_readable(length)
        what = f"record {int(self._starts[number]) + position} of '{self.shards[number].name}'"
        attempts = 1 if number in self._failing else None
        self._failing.add(number)
        span = retried(lambda: self._read_once(number, offset, length), what, attempts)
        self._failing.discard(number)
        if len(span) < length:  # of a local file; nothing more will come
            raise OSError(f"the shard is cut short: {len(span)} of {length} bytes could be read")
        return span

    def _read_once(self, number: int, offset: int, length: int) -> bytes:
        shard = self.shards[number]
        if isinstance(shard, Location):
            if (local := self._cached(number, shard)) is not None:
                # Not kept open: a file that is removed to make room would keep its place on the disk.
                with suppress(FileNotFoundError), local.open("rb", buffering=0) as file:
                    return read_span(file, offset, length)
            span = shard.read(offset, length)
            if len(span) < length:
                raise OSError(f"only {len(span)} of {length} bytes were sent")
            return span
        try:
            return read_span(self._file(number, shard), offset, length)
        except OSError:
            self._files.pop(number, None)  # a stale handle of a network drive stays stale
            raise

    def _cached(self, number: int, shard: Location) -> Path | None:
        """The local copy of a shard behind a URL; it is requested when several records of it were read."""
        if self._cache is None or (entry := self._entries.get(number)) is None:
            return None
        if (path := self._cache.find(shard, entry["sha256"])) is None:
            self._requests[number] += 1
            if self._requests[number] % _RECORDS_BEFORE_REQUEST == 0:
                self._cache.request(shard, entry["bytes"], entry["sha256"])
        return path

    def _file(self, number: int, path: Path) -> BinaryIO:
        if self._process != os.getpid():
            # A forked worker shares file positions with its parent: open new files.
            self._files, self._process = {}, os.getpid()
        if number not in self._files:
            self._files[number] = path.open("rb", buffering=0)
            if len(self._files) > _OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
        return self._files[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_failing": set()}


def _located(source: Source | Sequence[Source]) -> list[Path | Location]:
    kinds = (str, os.PathLike, Location)
    sources = [source] if isinstance(source, kinds) else source
    if isinstance(sources, Sequence) and sources and all(isinstance(item, kinds) for item in sources):
        return [locate(item) for item in sources]
    raise UserError(f"{shown(source)} is not a folder of shards; give a path, a URL, or a list of these")


def _is_folder(item: Path | Location) -> bool:
    """Whether to read it as a folder: by its name where it is behind a URL or does not exist."""
    if isinstance(item, Location):
        return not item.name.endswith(".tar")
    try:
        return item.is_dir() or not (item.exists() or item.name.endswith(".tar"))
    except OSError as error:
        raise UserError(f"{item} cannot be read: {first_line(error)}") from None


def _load_indexes(
    shards: Sequence[Path | Location],
    records: Sequence[int | None],
    packed: Sequence[PackedShard | None],
    tolerant: bool,
) -> list[TarIndex | PackedShard]:
    """The index of every shard with its expected number of records; errors as in `ShardDataset`."""
    remote = [
        one for one, known in zip(shards, packed, strict=True) if known is None and isinstance(one, Location)
    ]
    found = iter(load_remote_indexes(remote))
    indexes: list[TarIndex | PackedShard] = []
    for shard, expected, known in zip(shards, records, packed, strict=True):
        if known is not None:
            indexes.append(known)
            continue
        index, damage = next(found) if isinstance(shard, Location) else surviving_index(shard)
        if damage is not None and (expected is None or not tolerant):
            raise UserError(f"{damage.rstrip('. ')}{_ADVICE}")
        if expected is not None and len(index) < expected:
            lost = f"{expected - len(index)} of its {expected} records are lost"
            if not tolerant:
                raise UserError(f"shard {shard}: {lost}{_ADVICE}")
            logger.warning("%s %s.", damage or f"{shard}:", lost)
        indexes.append(index)
    return indexes
