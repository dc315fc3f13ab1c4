"""Shards: a folder of webdataset tars with a manifest, written atomically and read by index.

Members of a sample (see `records` for the record itself)::

    00000012.json               the record; its image parts name members by their ending, e.g. "0.png"
    00000012.0.png              the first image, or instead of it
    00000012.0.pixel.npy        its cached codes, uint16 (H, W, D)
    00000012.0.semantic.npy

`manifest.json` holds the counts, every shard with its split and SHA-256, the source, the licence, the
settings and the rejected samples with their reasons.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...common.errors import UserError, first_line, one_line, shown
from ...common.files import atomic_folder
from ...common.outputs import SHARD_MAKERS, check_output, mark_output
from ...common.paths import is_plain_name, plain_name
from ...common.values import flag, whole_number
from ..records import Record, RecordError
from .manifest import FORMAT, FORMAT_VERSION, MANIFEST, manifest_code_shape, read_manifest
from .sample_codec import CodeShape, EncodedSample, decode_record, encode_record
from .storage import Location, locate
from .tar_index import (
    TarIndex,
    build_index,
    index_path,
    load_remote_indexes,
    read_span,
    require_readable,
    sample_members,
    save_index,
    surviving_index,
)

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | Location

_OPEN_FILES = 64
_MOST_REASONS = 100
#: Of a folder with damage at least this share of the records must be there.
_LEAST_READABLE = 0.01


# --- writing ----------------------------------------


class OpenShard:
    """A tar being written: shard `number` of a split in `folder`.

    Every shard is named here, so no split leads out of the folder: UserError for one that is no plain name.
    """

    def __init__(self, folder: Path, split: str, number: int) -> None:
        self.path = path = folder / f"{plain_name(split, 'the split')}-{number:05d}.tar"
        self.split = split
        self.records = 0
        self.images = 0
        self._tar = tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT)

    def add(self, key: str, sample: EncodedSample) -> None:
        for ending, data in sample.members:
            # Neither time nor owner, so that equal records make equal shards.
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        self.records += 1
        self.images += sample.num_images

    def finish(self) -> dict[str, Any]:
        """Close the tar, keep its index beside it and return its entry of the manifest."""
        self._tar.close()
        save_index(self.path, build_index(self.path))
        return {
            "file": self.path.name,
            "split": self.split,
            "records": self.records,
            "images": self.images,
            "bytes": self.path.stat().st_size,
            "sha256": file_checksum(self.path),
        }


class ShardWriter:
    """Writes records to a folder of shards; use it as a context manager.

    The folder appears, complete and with its manifest, when the block ends without an error. `source`,
    `licence` and `settings` (any JSON) go to the manifest. Samples that cannot be used are given to `reject`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        source: str,
        licence: str,
        settings: Mapping[str, Any] | None = None,
        shard_size: int = 10_000,
        overwrite: bool = False,
        extra: Mapping[str, Any] | None = None,
        first_key: int = 0,
    ) -> None:
        self.folder = Path(folder)
        check_output(self.folder, {}, overwrite, makers=SHARD_MAKERS)
        self._shard_size = whole_number(shard_size, "--shard-size", 1)
        self._description = {"source": source, "licence": licence, "settings": dict(settings or {})}
        self._extra = dict(extra or {})
        self._open: dict[str, OpenShard] = {}
        self._finished: list[dict[str, Any]] = []
        self._rejected: list[dict[str, str]] = []
        self._first_key = self._next_key = first_key

    def __enter__(self) -> ShardWriter:
        self._context = atomic_folder(self.folder)
        self._temporary = self._context.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            for split in list(self._open):
                self._close(split)
            if error[0] is None:
                text = json.dumps(self.manifest(), indent=2, ensure_ascii=False)
                (self._temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
                mark_shards(self._temporary, "dualtoken")
        except BaseException as problem:
            self._context.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self._context.__exit__(*error)

    def write(self, record: Record, split: str = "train") -> bool:
        """Store a record; a broken one is rejected with its reason instead, and False returned."""
        try:
            require_split(split)
            sample = encode_record(record)
        except RecordError as error:
            self.reject(str(record.id), str(error))
            return False
        self.write_encoded(sample, split)
        return True

    def write_encoded(self, sample: EncodedSample, split: str = "train") -> None:
        """Store a record that `encode_record` has encoded, possibly in another process."""
        shard = self._open.get(split)
        if shard is None:
            number = sum(done["split"] == split for done in self._finished)
            shard = self._open[split] = OpenShard(self._temporary, split, number)
        shard.add(f"{self._next_key:08d}", sample)
        self._next_key += 1
        if shard.records >= self._shard_size:
            self._close(split)

    def reject(self, sample: str, reason: str) -> None:
        """Note a sample that was left out, for the manifest."""
        self._rejected.append({"sample": one_line(sample), "reason": one_line(reason)})

    @property
    def num_records(self) -> int:
        return self._next_key - self._first_key

    @property
    def num_rejected(self) -> int:
        return len(self._rejected)

    def manifest(self) -> dict[str, Any]:
        """What `manifest.json` says, about the shards finished so far."""
        return build_manifest({**self._description, **self._extra}, self._finished, self._rejected)

    def _close(self, split: str) -> None:
        self._finished.append(self._open.pop(split).finish())


def require_split(split: object) -> None:
    """Raise RecordError unless `split` can name shards."""
    if not is_plain_name(split):
        raise RecordError(f"its split {shown(split)} cannot name a file")


def mark_shards(folder: Path, command: str) -> None:
    """Mark a finished folder of shards as made by `command`, with the indexes that readers may add later."""
    names = {path.name for path in folder.iterdir()}
    indexes = {index_path(folder / name).name for name in names if name.endswith(".tar")}
    mark_output(folder, command, names | indexes)


def build_manifest(
    description: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    rejected: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """A manifest from the finished shards' entries and the rejected samples, each {"sample", "reason"}."""
    splits: Counter[str] = Counter()
    for shard in shards:
        splits[shard["split"]] += shard["records"]
    counts = {
        "records": sum(splits.values()),
        "images": sum(shard["images"] for shard in shards),
        "splits": dict(splits),
        "rejected": len(rejected),
    }
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        **description,
        "counts": counts,
        "shards": sorted(shards, key=lambda shard: shard["file"]),
        "rejected": {"reasons": _most_reasons(reason_counts(rejected)), "samples": list(rejected)},
    }


def _most_reasons(counts: Counter[str]) -> dict[str, int]:
    """The counts, of the most frequent reasons where there are very many."""
    if len(counts) <= _MOST_REASONS:
        return dict(counts)
    most = dict(counts.most_common(_MOST_REASONS))
    return {**most, "other reasons": counts.total() - sum(most.values())}


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason_counts(rejected: Iterable[Mapping[str, str]]) -> Counter[str]:
    """How often each reason occurs, with the names and numbers of single samples left out."""
    return Counter(re.sub(r"'[^']*'|(?<!UTF-)\d+", "…", item["reason"]).strip(" .") for item in rejected)


# --- reading ----------------------------------------


class ShardDataset:
    """Map-style access to the records of shards; picklable, safe to fork, and it opens files lazily.

    `source` is a folder with a manifest, a tar, or a list of these, each a path or a URL that fsspec knows
    (`s3://…`, `https://…`). `split` selects the shards of folders ("all" for every one); single tars are
    taken as they are. Images come as PIL images that decode at first use, or as cached codes: uint16 arrays
    (H, W, D) of the depth and the number of codes that the manifest states. A record that cannot be read, or
    breaks the schema, raises RecordError.

    With `tolerant`, shards of a folder that are missing or damaged are named in the log, and their lost
    records raise RecordError when read, so that a run that met the damage on its way can also start again.
    The same holds for a single tar where `records` says how many it should have, however many are lost.

    Errors:
        UserError for a source that is not there or is neither, a split that is not there, a manifest with
        mistakes, a shard that is missing or damaged (with `tolerant`: where 99 % of the records are lost).
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        split: str = "train",
        tolerant: bool = False,
        records: int | None = None,
    ) -> None:
        flag(tolerant, "tolerant")
        self.split = split
        self.manifests: list[dict[str, Any]] = []
        self.shards: list[Path | Location] = []
        self._shapes: list[CodeShape | None] = []
        expected: list[int | None] = []  # records of each shard; None for a tar of which nothing is known
        for item in _located(source):
            if _is_folder(item):
                expected += self._add_folder(item)
            else:
                self.shards.append(item)
                self._shapes.append(None)
                expected.append(records)
        self._indexes = _load_indexes(self.shards, expected, tolerant)
        lengths = [
            max(len(i), n or 0) if tolerant else len(i) for i, n in zip(self._indexes, expected, strict=True)
        ]
        if records is None:
            _require_readable_share(source, sum(map(len, self._indexes)), sum(lengths))
        self._starts = np.cumsum([0, *lengths])
        self._files: dict[int, BinaryIO] = {}
        self._process = os.getpid()

    def _add_folder(self, folder: Path | Location) -> list[int]:
        manifest = read_manifest(folder)
        wanted = self.split if isinstance(self.split, str) else None
        shards = [s for s in manifest["shards"] if wanted in ("all", s["split"])]
        if not shards:
            known = sorted({shard["split"] for shard in manifest["shards"]})
            has = ", ".join(known) or "no records"
            raise UserError(f"{folder} has no split {shown(self.split)}: it has {has}.")
        self.manifests.append(manifest)
        self.shards += [folder / shard["file"] for shard in shards]
        self._shapes += [manifest_code_shape(manifest)] * len(shards)
        return [shard["records"] for shard in shards]

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, when the dataset is one folder."""
        if len(self.manifests) != 1:
            raise UserError(f"This dataset has {len(self.manifests)} manifests, not one: use `manifests`.")
        return self.manifests[0]

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
        path = self.shards[number]
        try:
            span = self._read(number, index - int(self._starts[number]))
            return decode_record(sample_members(span, path)[1], load_images, self._shapes[number])
        except (OSError, ValueError) as error:
            reason = first_line(error)
            raise RecordError(f"Record {index} of '{path.name}' cannot be used: {reason}") from error

    def texts(self) -> Iterator[str]:
        """Every text of every record, in order; unreadable records are passed over."""
        for index in range(len(self)):
            try:
                yield from self.record(index, load_images=False).texts()
            except RecordError:
                continue

    def _read(self, number: int, place: int) -> bytes:
        """The bytes of the sample at a place of a shard. Raises OSError."""
        shard, index = self.shards[number], self._indexes[number]
        if place >= len(index):
            raise OSError("the shard was missing or damaged when it was opened")
        offset, length = int(index.offsets[place]), int(index.lengths[place])
        if isinstance(shard, Location):
            require_readable(length)
            span = shard.read(offset, length)
        else:
            span = read_span(self._file(number, shard), offset, length)
        if len(span) < length:
            raise OSError(f"the shard is cut short, {len(span)} of {length} bytes are there")
        return span

    def _file(self, number: int, path: Path) -> BinaryIO:
        if self._process != os.getpid():
            # A forked worker shares file positions with its parent: open its own files.
            self._files = {}
            self._process = os.getpid()
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = path.open("rb", buffering=0)
            if len(self._files) > _OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
        return file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}


def _located(source: Source | Sequence[Source]) -> list[Path | Location]:
    kinds = (str, os.PathLike, Location)
    sources = [source] if isinstance(source, kinds) else source
    if (
        not isinstance(sources, Sequence)
        or not sources
        or not all(isinstance(item, kinds) for item in sources)
    ):
        raise UserError(f"{shown(source)} is not a folder of shards; give a path, a URL, or a list of these")
    return [locate(item) for item in sources]


def _is_folder(item: Path | Location) -> bool:
    """Whether it is to be read as a folder; what is not there is, unless its name is that of a tar."""
    if isinstance(item, Location):
        return not item.name.endswith(".tar")
    try:
        return item.is_dir() or not (item.exists() or item.name.endswith(".tar"))
    except OSError as error:
        raise UserError(f"{item} cannot be read: {first_line(error)}") from None


_ADVICE = ": `dualtoken prepare check` names all damage; make the data again"


def _without_stop(damage: object) -> str:
    return str(damage).rstrip(". ")


def _load_indexes(
    shards: Sequence[Path | Location], records: Sequence[int | None], tolerant: bool
) -> list[TarIndex]:
    """The index of every shard of so many records; see `ShardDataset` for what happens to a damaged one."""
    remote = [shard for shard in shards if isinstance(shard, Location)]
    found = iter(load_remote_indexes(remote))
    indexes = []
    for shard, expected in zip(shards, records, strict=True):
        index, damage = next(found) if isinstance(shard, Location) else surviving_index(shard)
        if damage is not None and (expected is None or not tolerant):
            raise UserError(f"{_without_stop(damage)}{_ADVICE}")
        if expected is not None and len(index) < expected:
            lost = f"{expected - len(index)} of its {expected} records are lost"
            if not tolerant:
                raise UserError(f"shard {shard}: {lost}{_ADVICE}")
            logger.warning("%s %s.", damage or f"{shard}:", lost)
        indexes.append(index)
    return indexes


def _require_readable_share(source: Any, readable: int, records: int) -> None:
    if readable < _LEAST_READABLE * records:
        raise UserError(
            f"{shown(source)}: {records - readable} of {records} records are lost, their shards are missing "
            "or damaged: prepare the data again"
        )


def verify_shards(folder: str | os.PathLike[str]) -> None:
    """Compare every shard with the SHA-256 in the manifest; raises UserError that names a damaged one."""
    for shard in read_manifest(folder)["shards"]:
        path = Path(folder) / shard["file"]
        if not path.is_file():
            raise UserError(f"Shard {path} is missing: prepare the data again.")
        if file_checksum(path) != shard["sha256"]:
            raise UserError(f"Shard {path} differs from its manifest: prepare the data again.")
