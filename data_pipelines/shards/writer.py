"""Writing shards: tars of records by split, and the manifest of their folder."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...common.errors import UserError, one_line, shown
from ...common.files import atomic_folder, file_checksum, write_text
from ...common.outputs import SHARD_MAKERS, check_output, mark_output
from ...common.paths import is_plain_name, plain_name
from ...common.values import whole_number
from ..records import Record, RecordError
from .format import FORMAT, FORMAT_VERSION, MANIFEST
from .packed_index import save_packed_index
from .sample_codec import EncodedSample, encode_record
from .tar_index import build_index, index_path, save_index

_MOST_SPLITS = 64  # each holds a file open
_MOST_REASONS = 100


class OpenShard:
    """A tar being written: shard `number` of a split in `folder`.

    All shards are named here: a split that is not a plain name, and may lead out of the folder, is a
    UserError.
    """

    def __init__(self, folder: Path, split: str, number: int) -> None:
        self.path = folder / f"{plain_name(split, 'the split')}-{number:05d}.tar"
        self.split = split
        self.records = self.images = 0
        self._tar = tarfile.TarFile(self.path, "w", format=tarfile.USTAR_FORMAT)

    def add(self, key: str, sample: EncodedSample) -> None:
        for ending, data in sample.members:
            # No time and no owner, so that equal records make equal shards.
            info = tarfile.TarInfo(f"{key}.{ending}")
            info.size = len(data)
            self._tar.addfile(info, io.BytesIO(data))
        self.records += 1
        self.images += sample.num_images

    def close(self) -> None:
        self._tar.close()

    def finish(self) -> dict[str, Any]:
        """Close the tar, write its index next to it and return its entry of the manifest."""
        self.close()
        save_index(self.path, build_index(self.path))
        return {
            "file": self.path.name,
            "split": self.split,
            "records": self.records,
            "images": self.images,
            "bytes": self.path.stat().st_size,
            "sha256": file_checksum(self.path),
        }


class PartWriter:
    """Writes records to the shards of a folder and lists the rejected ones; a context manager.

    Args:
        folder: where to write.
        shard_size: records per shard; None: one shard per split.
        first_shard: the number of the first shard of each split.
        key: makes the key of record n, counted over all splits.
    """

    def __init__(
        self,
        folder: Path,
        shard_size: int | None = None,
        first_shard: int = 0,
        key: Callable[[int], str] = "{:08d}".format,
    ) -> None:
        self._folder, self._shard_size, self._key = folder, shard_size, key
        self._numbers: Counter[str] = Counter()
        self._first_shard = first_shard
        self._open: dict[str, OpenShard] = {}
        self._finished: list[dict[str, Any]] = []
        self._rejected: list[dict[str, str]] = []
        self._records = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for shard in self._open.values():
            shard.close()

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
        if split not in self._open:
            self._open[split] = self._next_shard(split)
        shard = self._open[split]
        shard.add(self._key(self._records), sample)
        self._records += 1
        if shard.records == self._shard_size:
            self._finish(split)

    def reject(self, sample: str, reason: str) -> None:
        """List a sample as rejected in the manifest."""
        self._rejected.append({"sample": one_line(sample), "reason": one_line(reason)})

    def finish(self) -> dict[str, Any]:
        """Complete all shards. {"shards": their entries of the manifest, "rejected": the rejected samples}"""
        for split in list(self._open):
            self._finish(split)
        return {"shards": self._finished, "rejected": self._rejected}

    def _finish(self, split: str) -> None:
        self._finished.append(self._open.pop(split).finish())

    def _next_shard(self, split: str) -> OpenShard:
        if len(self._open) == _MOST_SPLITS:
            raise UserError(
                f"there are more than {_MOST_SPLITS} splits ({', '.join([*self._open][:3])}, …): check which "
                "field names them"
            )
        shard = OpenShard(self._folder, split, self._first_shard + self._numbers[split])
        self._numbers[split] += 1
        return shard


class ShardWriter:
    """Writes records to a folder of shards: `with ShardWriter(...) as writer: writer.write(record)`.

    The folder appears, complete and with its manifest, when the block ends without an error. `source`,
    `licence`, `settings` (any JSON) and `extra` fields go to the manifest. `writer` is a `PartWriter`.
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
    ) -> None:
        self.folder = Path(folder)
        check_output(self.folder, {}, overwrite, makers=SHARD_MAKERS)
        self._shard_size = whole_number(shard_size, "--shard-size", 1)
        about = {"source": source, "licence": licence, "settings": dict(settings or {})}
        self._description = {**about, **(extra or {})}

    def __enter__(self) -> PartWriter:
        self._context = self._writing()
        return self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    @contextmanager
    def _writing(self) -> Iterator[PartWriter]:
        with atomic_folder(self.folder) as temporary:
            with PartWriter(temporary, self._shard_size) as writer:
                yield writer
                part = writer.finish()
            write_manifest(temporary, build_manifest(self._description, part["shards"], part["rejected"]))
            save_packed_index(temporary, part["shards"])
            mark_shards(temporary, "dualtoken")


def require_split(split: object) -> None:
    """Raise RecordError unless `split` can name shards."""
    if not is_plain_name(split):
        raise RecordError(f"its split {shown(split)} cannot name a file")


def mark_shards(folder: Path, command: str) -> None:
    """Mark a finished folder of shards as made by `command`; readers may add indexes of its tars later."""
    names = {path.name for path in folder.iterdir()}
    indexes = {index_path(folder / name).name for name in names if name.endswith(".tar")}
    mark_output(folder, command, names | indexes)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write `manifest.json` of a folder of shards, atomically."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    write_text(folder / MANIFEST, text + "\n")


def build_manifest(
    description: Mapping[str, Any], shards: Sequence[Mapping[str, Any]], rejected: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The manifest of finished shards (their entries) and rejected samples (each {"sample", "reason"})."""
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
        "rejected": {"reasons": _most_reasons(rejected), "samples": list(rejected)},
    }


def _most_reasons(rejected: Iterable[Mapping[str, str]]) -> dict[str, int]:
    """Counts of the most frequent reasons, with the names and numbers of single samples left out."""
    counts = Counter(re.sub(r"'[^']*'|(?<!UTF-)\d+", "…", item["reason"]).strip(" .") for item in rejected)
    if len(counts) <= _MOST_REASONS:
        return dict(counts)
    most = dict(counts.most_common(_MOST_REASONS))
    return {**most, "other reasons": counts.total() - sum(most.values())}
