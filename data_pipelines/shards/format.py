"""The format of shards: a folder of webdataset tars with a manifest.

Members of a sample (see `records` for the record itself)::

    00000012.json               the record; its image parts name members by their ending, e.g. "0.png"
    00000012.0.png              the first image, or instead of it
    00000012.0.pixel.npy        its cached codes, uint16 (H, W, D)
    00000012.0.semantic.npy

`manifest.json` holds the counts, every shard with its split and SHA-256, the source, the licence, the
settings and the rejected samples with their reasons. It is untrusted: all of it is checked before it is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.errors import UserError, first_line, shown
from ...common.json_files import (
    LARGEST_FILE,
    JsonError,
    parse_json,
    read_json_object,
    take,
    take_count,
    take_list,
)
from ...common.paths import inside, plain_name
from .sample_codec import CODE_LIMIT, CodeShape
from .storage import Location, locate

MANIFEST = "manifest.json"
FORMAT = "dualtoken-shards"
FORMAT_VERSION = 1

#: The smallest record in a tar: the header of its JSON, and one block of it.
_LEAST_BYTES = 1024
_LARGEST_GRID = 4096
_LARGEST_DEPTH = 256
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,150}\.tar")


def read_manifest(folder: str | os.PathLike[str] | Location) -> dict[str, Any]:
    """The manifest of a folder of shards, local or behind a URL.

    Every field that this package uses has the right type and a possible value, and no two shards share a
    file; `settings` and `plan` are any JSON. Whether the shards agree with it is not checked. UserError when
    there is no manifest, it cannot be read, it is of another format, or a field is wrong.
    """
    root = locate(folder)
    where = root / MANIFEST
    manifest = _content(root)
    if manifest.get("format") != FORMAT or manifest.get("version") != FORMAT_VERSION:
        found = f"{shown(manifest.get('format'))} version {shown(manifest.get('version'))}"
        raise UserError(f"{where} has format {found}; expected {FORMAT!r} version {FORMAT_VERSION}")
    _check(manifest, str(where))
    if isinstance(root, Path):
        for shard in manifest["shards"]:
            if os.path.islink(f"{root}/{shard['file']}"):  # not pathlib, which is slow for ten thousand
                inside(root, shard["file"], f"{where}: file")
    return manifest


def manifest_code_shape(manifest: Mapping[str, Any]) -> CodeShape | None:
    """The shape of the codes in a folder of shards; None where it holds images, or states no shape."""
    tokenizer = manifest.get("tokenizer") or {}
    grid, pixel, semantic = map(tokenizer.get, ("grid_size", "pixel_quantizer", "semantic_quantizer"))
    if grid is None or pixel is None or semantic is None:
        return None
    return CodeShape.of(grid, pixel, semantic)


def _content(root: Path | Location) -> dict[str, Any]:
    where = root / MANIFEST
    try:
        if isinstance(where, Path):
            where.lstat()
            return read_json_object(where)
        manifest = parse_json(where.read(0, LARGEST_FILE))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{root} is not a folder of shards (no {MANIFEST}): make one with `dualtoken prepare`."
        ) from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {first_line(error)}") from None
    except JsonError as error:
        raise UserError(f"{where} is not JSON ({error})") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{where} holds {shown(manifest)}; expected a JSON object")
    return manifest


def _check(manifest: Mapping[str, Any], where: str) -> None:
    for name in ("source", "licence"):
        take(manifest, name, str, where)
    take(manifest, "settings", dict, where)
    counts = take(manifest, "counts", dict, where)
    for name in ("records", "images", "rejected"):
        take_count(counts, name, f"{where}, counts")
    splits = take(counts, "splits", dict, f"{where}, counts")
    for split in splits:
        plain_name(split, f"{where}, counts: split")
        take_count(splits, split, f"{where}, counts, splits")
    rejected = take(manifest, "rejected", dict, where)
    reasons = take(rejected, "reasons", dict, f"{where}, rejected")
    for reason in reasons:
        take_count(reasons, reason, f"{where}, rejected, reasons")
    expected = "objects with strings under sample and reason"
    take_list(rejected, "samples", is_rejection, expected, f"{where}, rejected")
    shards = take_list(
        manifest, "shards", lambda shard: isinstance(shard, dict), "an object per shard", where
    )
    files = set()
    for number, shard in enumerate(shards):
        check_shard_entry(shard, f"{where}, shards[{number}]")
        if shard["file"] in files:
            raise UserError(f"{where}, shards[{number}]: file {shard['file']!r} comes twice")
        files.add(shard["file"])
    if (tokenizer := take(manifest, "tokenizer", dict, where, None)) is not None:
        _check_tokenizer(tokenizer, f"{where}, tokenizer")


def is_rejection(item: Any) -> bool:
    """Whether it is a rejected sample and its reason."""
    return isinstance(item, dict) and all(isinstance(item.get(name), str) for name in ("sample", "reason"))


def check_shard_entry(shard: Mapping[str, Any], where: str) -> None:
    """Raise UserError unless every field of a shard's entry has the right type and a possible value."""
    file = take(shard, "file", str, where)
    if not _SHARD_NAME.fullmatch(file):
        raise UserError(f"{where}: file {shown(file)} is not the name of a tar in that folder")
    plain_name(shard.get("split"), f"{where}: split")
    take(shard, "sha256", str, where)
    take_count(shard, "images", where)
    size = take_count(shard, "bytes", where)
    take_count(shard, "records", f"{where} ({size} bytes)", most=size // _LEAST_BYTES)


def _check_tokenizer(facts: Mapping[str, Any], where: str) -> None:
    take(facts, "checksum", str, where)
    take(facts, "preprocessing", str, where, "")
    grid = take(facts, "grid_size", list, where, [1, 1])
    if len(grid) != 2 or not all(type(side) is int and 1 <= side <= _LARGEST_GRID for side in grid):
        raise UserError(
            f"{where}: grid_size is {shown(grid)}; expected two integers from 1 to {_LARGEST_GRID}"
        )
    for branch in ("pixel_quantizer", "semantic_quantizer"):
        quantizer = take(facts, branch, dict, where, None)
        for name, most in (("num_codes", CODE_LIMIT), ("depth", _LARGEST_DEPTH)):
            if quantizer is not None and not take_count(quantizer, name, f"{where}, {branch}", most=most):
                raise UserError(f"{where}, {branch}: {name} is 0; expected an integer from 1 to {most}")
