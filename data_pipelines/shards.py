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

from ..common.errors import UserError, one_line, shown
from ..common.files import atomic_folder
from ..common.outputs import check_output, mark_output
from ..common.paths import is_plain_name, plain_name
from ..common.values import whole_number
from .records import Record, RecordError
from .sample_codec import EncodedSample, decode_record, encode_record
from .storage import Location, locate
from .tar_index import (
    TarIndex,
    build_index,
    index_path,
    load_index,
    load_remote_indexes,
    sample_members,
    save_index,
)

logger = logging.getLogger(__name__)

Source = str | os.PathLike[str] | Location

MANIFEST = "manifest.json"
FORMAT = "dualtoken-shards"
FORMAT_VERSION = 1
_OPEN_FILES = 64
_MOST_REASONS = 100


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
        check_output(self.folder, {}, overwrite)
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
    return Counter(re.sub(r"'[^']*'|\d+", "…", item["reason"]).strip(" .") for item in rejected)


# --- reading ----------------------------------------


class ShardDataset:
    """Map-style access to the records of shards; picklable, safe to fork, and it opens files lazily.

    `source` is a folder with a manifest, a tar, or a list of these, each a path or a URL that fsspec knows
    (`s3://…`, `https://…`). `split` selects the shards of folders ("all" for every one); single tars are
    taken as they are. Images come as PIL images that decode at first use, or as cached codes: uint16 arrays
    (H, W, D). A record that cannot be read raises RecordError.

    With `tolerant`, shards of a folder that are missing or cut short are named in the log, and their lost
    records raise RecordError when read, so that a run that met the damage on its way can also start again.
    """

    def __init__(
        self,
        source: Source | Sequence[Source],
        split: str = "train",
        tolerant: bool = False,
    ) -> None:
        sources = [source] if isinstance(source, (str, os.PathLike, Location)) else list(source)
        self.split = split
        self.manifests: list[dict[str, Any]] = []
        self.shards: list[Path | Location] = []
        expected: dict[int, int] = {}  # records of the shards whose loss is tolerated
        for item in map(locate, sources):
            is_folder = item.is_dir() if isinstance(item, Path) else not item.name.endswith(".tar")
            if is_folder:
                self._add_folder(item, expected if tolerant else {})
            else:
                self.shards.append(item)
        indexes = _load_indexes(self.shards, expected)
        self._offsets = np.concatenate([index.offsets for index in indexes])
        self._lengths = np.concatenate([index.lengths for index in indexes])
        if len(self._offsets) and self._offsets.max() < 0:
            raise UserError(f"All shards of {source} are lost: prepare the data again.")
        self._starts = np.cumsum([0] + [len(index) for index in indexes])
        self._files: dict[int, BinaryIO] = {}
        self._process = os.getpid()

    def _add_folder(self, folder: Path | Location, expected: dict[int, int]) -> None:
        manifest = read_manifest(folder)
        shards = [s for s in manifest["shards"] if self.split in ("all", s["split"])]
        if not shards:
            known = sorted({shard["split"] for shard in manifest["shards"]})
            raise UserError(
                f"{folder} has no split '{self.split}': it has {', '.join(known) or 'no records'}."
            )
        self.manifests.append(manifest)
        for shard in shards:
            expected[len(self.shards)] = shard["records"]
            self.shards.append(folder / shard["file"])

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest, when the dataset is one folder."""
        if len(self.manifests) != 1:
            raise UserError(f"This dataset has {len(self.manifests)} manifests, not one: use `manifests`.")
        return self.manifests[0]

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Record:
        return self.record(index)

    def record(self, index: int, load_images: bool = True) -> Record:
        """Record `index`; without `load_images` its image parts keep the names of their members."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        path = self.shards[number]
        try:
            span = self._read(number, int(self._offsets[index]), int(self._lengths[index]))
            return decode_record(sample_members(span, path)[1], load_images)
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise RecordError(
                f"Record {index} of '{path.name}' cannot be read ({type(error).__name__}: {error})."
            ) from error

    def texts(self) -> Iterator[str]:
        """Every text of every record, in order; unreadable records are passed over."""
        for index in range(len(self)):
            try:
                yield from self.record(index, load_images=False).texts()
            except RecordError:
                continue

    def _read(self, number: int, offset: int, length: int) -> bytes:
        shard = self.shards[number]
        if offset < 0:
            raise OSError("the shard was missing or cut short when it was opened")
        if isinstance(shard, Location):
            span = shard.read(offset, length)
        else:
            file = self._file(number, shard)
            file.seek(offset)
            span = file.read(length)
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


def _load_indexes(shards: Sequence[Path | Location], expected: Mapping[int, int]) -> list[TarIndex]:
    """The index of every shard; those of `expected` may be lost in part or whole, see `ShardDataset`."""
    remote = {number: shard for number, shard in enumerate(shards) if isinstance(shard, Location)}
    indexes = dict(zip(remote, load_remote_indexes(list(remote.values())), strict=True))
    for number, shard in enumerate(shards):
        if isinstance(shard, Path):
            indexes[number] = (
                _surviving_index(shard, expected[number]) if number in expected else load_index(shard)
            )
    return [indexes[number] for number in range(len(shards))]


def _surviving_index(shard: Path, records: int) -> TarIndex:
    """The index of a shard of so many records, with offset -1 for those that are lost."""
    try:
        index = load_index(shard)
    except UserError as error:
        index = (
            build_index(shard, cut_short=True) if shard.is_file() else TarIndex(*np.empty((2, 0), np.int64))
        )
        logger.warning("%s %d of its %d records are lost.", error, records - len(index), records)
    lost = np.full(max(0, records - len(index)), -1, np.int64)
    return TarIndex(np.concatenate([index.offsets, lost]), np.concatenate([index.lengths, lost]))


def read_manifest(folder: Source) -> dict[str, Any]:
    """The manifest of a folder of shards, local or behind a URL.

    Raises UserError when there is none, it cannot be read, or it is of another format.
    """
    path = locate(folder) / MANIFEST
    try:
        data = path.read_bytes() if isinstance(path, Path) else path.read()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} is not a folder of shards (no {MANIFEST}): make one with `dualtoken prepare`."
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): prepare the data again.") from error
    if manifest.get("format") != FORMAT or manifest.get("version") != FORMAT_VERSION:
        raise UserError(f"{path} has format {manifest.get('format')!r} version {manifest.get('version')!r}.")
    return manifest


def verify_shards(folder: str | os.PathLike[str]) -> None:
    """Compare every shard with the SHA-256 in the manifest; raises UserError that names a damaged one."""
    for shard in read_manifest(folder)["shards"]:
        path = Path(folder) / shard["file"]
        if not path.is_file():
            raise UserError(f"Shard {path} is missing: prepare the data again.")
        if file_checksum(path) != shard["sha256"]:
            raise UserError(f"Shard {path} differs from its manifest: prepare the data again.")
