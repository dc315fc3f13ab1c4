"""WebDataset tars as img2dataset writes them to shards.

A sample is the members of one key: an image, its caption as `.txt`, and facts about it as `.json`. A failed
download has no image; it is counted with the reason that its `.json` gives.
"""

from __future__ import annotations

import glob
import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import braceexpand

from ..common.errors import UserError
from ..common.images import is_image_name
from .convert import Rejected, one_line
from .convert_captions import CaptionOptions, caption_list, find_caption
from .convert_run import Sample, Source
from .records import Record, RecordError
from .tar_index import sample_key

#: Facts of img2dataset's JSON that are kept as metadata.
KEPT_FACTS = ("url", "sha256", "original_width", "original_height", "similarity", "LICENSE", "license")

#: Where a member's content lies in its tar: (offset, length).
Span = tuple[int, int]


@dataclass(frozen=True)
class TarSample:
    """The members of one key: endings of names and places in the file."""

    tar: Path
    key: str
    members: dict[str, Span]


@dataclass
class WebDatasetSource(Source):
    """All samples of `tars`, in order.

    `caption_field` is a field of the JSON; None takes the `.txt`, then a field of a usual name.
    """

    tars: list[Path]
    caption_field: str | None = None
    licence: str = "unknown"
    options: CaptionOptions = field(default_factory=CaptionOptions)

    def __post_init__(self) -> None:
        self.name = (
            f"{self.tars[0].name} … ({len(self.tars)} tars)" if len(self.tars) > 1 else self.tars[0].name
        )
        self.records_per_sample = self.options.records_per_sample

    def settings(self) -> dict[str, Any]:
        return {"caption_field": self.caption_field, **asdict(self.options)}

    def fingerprint(self) -> str:
        facts = "\n".join(f"{tar.name} {tar.stat().st_size if tar.is_file() else ''}" for tar in self.tars)
        return hashlib.sha256(facts.encode()).hexdigest()

    def samples(self) -> Iterator[Sample | Rejected]:
        for tar in self.tars:
            try:
                for sample in tar_samples(tar):
                    yield Sample(f"{tar.name}: {sample.key}", sample)
            except (tarfile.TarError, OSError, EOFError) as error:
                # What stands before the damage has been used; what stands behind it cannot be found.
                yield Rejected(tar.name, f"damaged tar, the rest of it is lost ({one_line(error)})")

    def records(self, payload: TarSample) -> Iterator[tuple[Record, str]]:
        with payload.tar.open("rb") as file:
            members = {ending: _read(file, span) for ending, span in payload.members.items()}
        facts = _facts(members)
        image = next((ending for ending in members if is_image_name(f"x.{ending}")), None)
        if image is None:
            raise RecordError(_why_no_image(facts))
        if "txt" in members and self.caption_field is None:
            captions = caption_list(members["txt"].decode("utf-8"))
        else:
            captions = caption_list(find_caption(facts, self.caption_field))
        encoded = self.options.images.stored(members[image], f"{payload.key}.{image}")
        metadata = {name: facts[name] for name in KEPT_FACTS if facts.get(name) is not None}
        yield from self.options.records(f"{payload.tar.stem}/{payload.key}", encoded, captions, metadata)


def tar_samples(tar: Path) -> Iterator[TarSample]:
    """The samples of a tar, one after the other; only headers are read.

    Raises tarfile.TarError at damage, after the samples before it; the last one may lack members.
    """
    size = tar.stat().st_size
    if size == 0:
        raise tarfile.ReadError("empty file")

    def members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, Span]]:
        for member in archive:
            if member.isfile():
                key = sample_key(member.name)
                yield key, member.name[len(key) + 1 :], (member.offset_data, member.size)
            archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps them all

    with tarfile.open(tar, "r:") as archive:
        for key, group in groupby(members(archive), key=lambda member: member[0]):
            spans = {ending: span for _, ending, span in group}
            if any(offset + length > size for offset, length in spans.values()):
                raise tarfile.ReadError(f"cut short within sample '{key}'")
            yield TarSample(tar, key, spans)
        # tarfile takes a cut or broken header for the end.
        with tar.open("rb") as file:
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end mark at byte {archive.offset}")


def find_tars(patterns: Sequence[str]) -> list[Path]:
    """The tars that names, folders, globs and brace expressions mean, in order and each once.

    `part/{00000..00009}.tar` names ten files; `part/*.tar` those that are there; a folder all its tars.
    Raises UserError for a pattern that means nothing.
    """
    tars: dict[Path, None] = {}
    for pattern in patterns:
        for name in braceexpand.braceexpand(pattern):
            if Path(name).is_dir():
                found = sorted(Path(name).glob("*.tar"))
            elif glob.has_magic(name):
                found = sorted(map(Path, glob.glob(name, recursive=True)))
            else:
                found = [Path(name)] if Path(name).is_file() else []
            if not found:
                raise UserError(f"--input {name} is no tar, and no folder or pattern of tars.")
            tars.update(dict.fromkeys(found))
    return list(tars)


def _read(file: Any, span: Span) -> bytes:
    file.seek(span[0])
    data = file.read(span[1])
    if len(data) < span[1]:
        raise RecordError("the tar is cut short")
    return data


def _facts(members: dict[str, bytes]) -> dict[str, Any]:
    facts = json.loads(members["json"]) if "json" in members else {}
    return facts if isinstance(facts, dict) else {}


def _why_no_image(facts: dict[str, Any]) -> str:
    if "messages" in facts or "conversations" in facts:
        return "it holds a conversation, not an image with a caption"
    message = facts.get("error_message") or facts.get("status")
    return f"no image, its download failed ({message})" if message else "no image"
