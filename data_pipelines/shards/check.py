"""Whether a folder of shards is complete and intact: every fault by file, record and reason.

Records are read by the functions that training reads them with: where nothing is found here, training skips
no record for being damaged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ...common.errors import UserError, first_line, one_line, shown
from ...common.files import file_checksum
from ...common.images.reading import MAX_PIXELS
from ...common.values import whole_number
from ..records import Part, RecordError, require_trainable
from ..workers import map_in_workers
from .format import MANIFEST, manifest_code_shape, read_manifest
from .sample_codec import CODE_PARTS, CodeShape, decode_record, load_part
from .storage import locate
from .stored_image import stored_image
from .tar_index import index_path, read_span, sample_members, scan_tar, stored_index

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """Something wrong: in which file, in which record (None: the file itself), and what."""

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
    root = locate(folder)
    if not isinstance(root, Path):
        raise UserError(f"{root} is a URL; only a local folder can be checked")
    manifest = read_manifest(root)
    shards = manifest["shards"]
    check = partial(check_shard, root, shape=manifest_code_shape(manifest), max_pixels=max_pixels)
    results = each_shard(check, shards, workers)
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
    processes = min(whole_number(workers, "workers", 1), max(1, len(shards)))
    with map_in_workers(function, shards, processes) as results:
        yield from results


def check_shard(
    folder: Path, shard: dict[str, Any], *, shape: CodeShape | None = None, max_pixels: int = MAX_PIXELS
) -> list[Fault]:
    """Every fault of one shard of the manifest; with `shape` also of codes that do not fit it."""
    path = folder / shard["file"]
    if not path.is_file():
        return [Fault(path.name, None, "is not a file" if path.exists() else "missing")]
    faults: list[Fault] = []
    try:
        if (size := path.stat().st_size) != shard["bytes"]:
            faults.append(Fault(path.name, None, f"has {size} bytes, the manifest states {shard['bytes']}"))
        elif file_checksum(path) != shard["sha256"]:
            faults.append(Fault(path.name, None, "its SHA-256 differs from the manifest's"))
        index, damage = scan_tar(path)
        with path.open("rb") as file:
            for number in range(len(index)):
                offset, length = int(index.offsets[number]), int(index.lengths[number])
                try:
                    key, members = sample_members(read_span(file, offset, length), path)
                except (OSError, ValueError) as error:
                    faults.append(Fault(path.name, f"record {number}", first_line(error)))
                    continue
                name, reasons = _record_faults(
                    f"record {number} ({one_line(key, 80)}", members, shape, max_pixels
                )
                faults += [Fault(path.name, name, reason) for reason in reasons]
        if damage is not None:
            faults.append(Fault(path.name, f"after {len(index)} records", f"damaged tar ({damage})"))
        elif len(index) != shard["records"]:
            reason = f"has {len(index)} records, the manifest states {shard['records']}"
            faults.append(Fault(path.name, None, reason))
        if (stored := stored_index(path)) is not None and stored != index:
            reason = f"does not fit {path.name}: delete it, it is made again"
            faults.append(Fault(index_path(path).name, None, reason))
    except OSError as error:
        faults.append(Fault(path.name, None, f"cannot be read ({first_line(error)})"))
    return faults


def _record_faults(
    name: str, members: dict[str, bytes], shape: CodeShape | None, max_pixels: int
) -> tuple[str, list[str]]:
    """`name` with the record's id, and every fault of a record."""
    try:
        record = decode_record(members, load_images=False)
    except RecordError as error:
        return f"{name})", [first_line(error)]
    faults = []
    try:
        require_trainable(record)
    except RecordError as error:
        faults.append(first_line(error))
    named = {"json"}
    for part in record.image_parts():
        names = [part[field] for field in ("image", *CODE_PARTS) if field in part]
        named |= {name for name in names if isinstance(name, str)}
        faults += _part_faults(part, members, shape, max_pixels)
    faults += [
        f"its member {shown(member)} belongs to no image part" for member in sorted(set(members) - named)
    ]
    return f"{name}, id {shown(record.id)})", faults


def _part_faults(
    part: Part, members: dict[str, bytes], shape: CodeShape | None, max_pixels: int
) -> Iterator[str]:
    try:
        load_part(dict(part), members, shape)
        if "image" in part:
            stored_image(members[part["image"]], part["image"], max_pixels=max_pixels)
    except RecordError as error:
        yield first_line(error)
