"""Is a folder of shards whole? Every fault by file, record and reason."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .convert import MAX_PIXELS, one_line, stored_image
from .convert_run import die_with_parent, ordered_results, worker_context
from .convert_webdataset import TarSample, tar_samples
from .records import Record, RecordError
from .sample_codec import CODE_PARTS, decode_record
from .shards import MANIFEST, file_checksum, read_manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """Something wrong: in which file, in which record (None: the file as a whole), and what."""

    file: str
    record: str | None
    reason: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.file, self.record, self.reason)))


def check_shards(
    folder: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, workers: int = 1
) -> Iterator[tuple[str, list[Fault]]]:
    """(file, its faults) for every shard of the manifest, in order, then for tars that it does not know.

    Checks sizes and SHA-256, reads every record, decodes every image and array of codes. Raises UserError
    when `folder` has no manifest that can be read.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    shards = manifest["shards"]
    results = each_shard(partial(check_shard, root, max_pixels=max_pixels), shards, workers)
    for shard, faults in zip(shards, results, strict=True):
        yield shard["file"], faults
    known = {shard["file"] for shard in shards}
    for path in sorted(root.glob("*.tar")):
        if path.name not in known:
            yield path.name, [Fault(path.name, None, f"is not in {MANIFEST}")]
    counted = sum(shard["records"] for shard in shards)
    if counted != manifest["counts"]["records"]:
        reason = f"counts {manifest['counts']['records']} records, its shards have {counted}"
        yield MANIFEST, [Fault(MANIFEST, None, reason)]


def each_shard(
    function: Callable[[dict[str, Any]], T], shards: Sequence[dict[str, Any]], workers: int
) -> Iterator[T]:
    """`function` of every shard's entry, in order, by `workers` processes (1: by this one)."""
    if workers <= 1 or len(shards) <= 1:
        yield from map(function, shards)
        return
    pool = ProcessPoolExecutor(
        min(workers, len(shards)), mp_context=worker_context(), initializer=die_with_parent
    )
    try:
        yield from ordered_results(pool, function, shards, 2 * workers)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def check_shard(folder: Path, shard: dict[str, Any], *, max_pixels: int = MAX_PIXELS) -> list[Fault]:
    """Every fault of one shard of the manifest."""
    path = folder / shard["file"]
    if not path.is_file():
        return [Fault(path.name, None, "missing")]
    faults: list[Fault] = []
    if (size := path.stat().st_size) != shard["bytes"]:
        faults.append(Fault(path.name, None, f"has {size} bytes, the manifest says {shard['bytes']}"))
    elif file_checksum(path) != shard["sha256"]:
        faults.append(Fault(path.name, None, "its SHA-256 differs from the manifest's"))
    number = 0
    try:
        for number, sample in enumerate(tar_samples(path), start=1):
            faults.extend(check_sample(sample, number - 1, max_pixels))
    except (tarfile.TarError, OSError, EOFError) as error:
        faults.append(Fault(path.name, f"behind {number} records", f"damaged tar ({one_line(error)})"))
    else:
        if number != shard["records"]:
            reason = f"has {number} records, the manifest says {shard['records']}"
            faults.append(Fault(path.name, None, reason))
    return faults


def check_sample(sample: TarSample, number: int, max_pixels: int = MAX_PIXELS) -> list[Fault]:
    """Every fault of record `number` of a shard."""
    name = f"record {number} ({sample.key})"
    with sample.tar.open("rb") as file:
        members = {}
        for ending, (offset, length) in sample.members.items():
            file.seek(offset)
            members[ending] = file.read(length)
    if "json" not in members:
        return [Fault(sample.tar.name, name, "it has no .json")]
    try:
        record = decode_record(members, load_images=False)
        name = f"record {number} ({sample.key}, id '{record.id}')"
        record.validate()
        reasons = list(_record_faults(record, members, max_pixels))
    except RecordError as error:
        reasons = [one_line(error)]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        reasons = [f"its .json is no record ({type(error).__name__}: {one_line(error)})"]
    return [Fault(sample.tar.name, name, reason) for reason in reasons]


def _record_faults(record: Record, members: dict[str, bytes], max_pixels: int) -> Iterator[str]:
    if not record.has_target():
        yield "nothing to learn: no assistant turn with text or an image"
    named = {"json"}
    whole = True
    for part in record.image_parts():
        for field in ("image", *CODE_PARTS):
            if field not in part:
                continue
            member = part[field]
            if not isinstance(member, str) or member not in members:
                yield f"its member '{member}' is missing"
                whole = False
                continue
            named.add(member)
            if field == "image":
                try:
                    stored_image(members[member], member, max_pixels=max_pixels)
                except RecordError as error:
                    yield str(error)
                    whole = False
    if whole:
        yield from _code_faults(members)
    for member in sorted(set(members) - named):
        yield f"its member '{member}' belongs to no image part"


def _code_faults(members: dict[str, bytes]) -> Iterator[str]:
    try:
        record = decode_record(members)
    except (KeyError, ValueError, TypeError, OSError, IndexError) as error:
        yield f"its codes cannot be read ({type(error).__name__}: {one_line(error)})"
        return
    for part in record.image_parts():
        for field in CODE_PARTS:
            if field in part and part[field].ndim != 3:
                yield f"its {field} have shape {part[field].shape}, expected (H, W, D)"
