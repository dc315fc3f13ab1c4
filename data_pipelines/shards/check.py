"""Check that a folder of shards is complete and intact: every fault by file, record and reason.

Records are read by the same functions as in training, which skips no damaged record where no fault is found.
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
from ..records import RecordError, require_trainable
from ..workers import map_in_workers
from .format import MANIFEST, manifest_code_shape, read_manifest
from .sample_codec import CODE_PARTS, CodeShape, decode_record, load_part
from .storage import locate
from .stored_image import stored_image
from .tar_index import index_path, read_span, sample_members, scan_tar, stored_index

T = TypeVar("T")


@dataclass(frozen=True)
class Fault:
    """A fault of a record in a file, or of the file itself (`record` is None)."""

    file: str
    record: str | None
    reason: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.file, self.record, self.reason)))


def check_shards(
    folder: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, workers: int = 1
) -> Iterator[tuple[str, list[Fault]]]:
    """(file, its faults) for every shard of the manifest, in order, then for tars that it does not list.

    Checks sizes and SHA-256, reads every record, decodes every image and array of codes. UserError when
    `folder` has no readable manifest.
    """
    root = locate(folder)
    if not isinstance(root, Path):
        raise UserError(f"{root} is a URL; only a local folder can be checked")
    manifest = read_manifest(root)
    shards = manifest["shards"]
    check = partial(_check_shard, root, shape=manifest_code_shape(manifest), max_pixels=max_pixels)
    files = [shard["file"] for shard in shards]
    yield from zip(files, each_shard(check, shards, workers), strict=True)
    for name in sorted({path.name for path in root.glob("*.tar")}.difference(files)):
        yield name, [Fault(name, None, f"is not in {MANIFEST}")]
    counted = sum(shard["records"] for shard in shards)
    if counted != manifest["counts"]["records"]:
        reason = f"counts {manifest['counts']['records']} records, its shards have {counted}"
        yield MANIFEST, [Fault(MANIFEST, None, reason)]


def each_shard(
    function: Callable[[dict[str, Any]], T], shards: Sequence[dict[str, Any]], workers: int
) -> Iterator[T]:
    """`function` of every shard's entry, in order, computed by `workers` processes (1: this one)."""
    processes = min(whole_number(workers, "workers", 1), max(1, len(shards)))
    with map_in_workers(function, shards, processes) as results:
        yield from results


def _check_shard(
    folder: Path, shard: dict[str, Any], shape: CodeShape | None, max_pixels: int
) -> list[Fault]:
    path = folder / shard["file"]
    faults: list[Fault] = []

    def add(reason: str, record: str | None = None, file: str = path.name) -> None:
        faults.append(Fault(file, record, reason))

    if not path.is_file():
        add("is not a file" if path.exists() else "missing")
        return faults
    try:
        if (size := path.stat().st_size) != shard["bytes"]:
            add(f"has {size} bytes, the manifest states {shard['bytes']}")
        elif file_checksum(path) != shard["sha256"]:
            add("its SHA-256 differs from the manifest's")
        index, damage = scan_tar(path)
        with path.open("rb") as file:
            for number, (offset, length) in enumerate(zip(index.offsets, index.lengths, strict=True)):
                name = f"record {number}"
                try:
                    key, members = sample_members(read_span(file, int(offset), int(length)), path)
                except (OSError, ValueError) as error:
                    add(first_line(error), name)
                    continue
                name, reasons = _record_faults(f"{name} ({one_line(key, 80)}", members, shape, max_pixels)
                for reason in reasons:
                    add(reason, name)
        if damage is not None:
            add(f"damaged tar ({damage})", f"after {len(index)} records")
        elif len(index) != shard["records"]:
            add(f"has {len(index)} records, the manifest states {shard['records']}")
        if (stored := stored_index(path)) is not None and stored != index:
            add(f"does not fit {path.name}: delete it, it is made again", file=index_path(path).name)
    except OSError as error:
        add(f"cannot be read ({first_line(error)})")
    return faults


def _record_faults(
    name: str, members: dict[str, bytes], shape: CodeShape | None, max_pixels: int
) -> tuple[str, list[str]]:
    """(`name` with the id of the record, its faults)."""
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
        try:
            load_part(dict(part), members, shape)
            if "image" in part:
                stored_image(members[part["image"]], part["image"], max_pixels=max_pixels)
        except RecordError as error:
            faults.append(first_line(error))
    unused = sorted(set(members) - named)
    faults += [f"its member {shown(member)} belongs to no image part" for member in unused]
    return f"{name}, id {shown(record.id)})", faults
