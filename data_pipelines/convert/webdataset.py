"""Convert WebDataset tars as written by img2dataset.

The members of one key are a sample: an image, its caption as `.txt`, and facts about it as `.json`. A failed
download has no image; it is rejected with the reason in its `.json`.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...common.errors import one_line
from ...common.outputs import Inputs
from ..records import Record, RecordError
from .captions import CaptionOptions, caption_list, find_caption
from .converter import Converter
from .foreign_values import json_value
from .samples import Rejected, Sample, files_fingerprint, utf8_text
from .tar_patterns import TAR_SUFFIXES, find_tars
from .tar_samples import TEXT_ENDINGS, Content, TarSample, tar_samples

#: Facts of img2dataset's JSON that are kept as metadata.
KEPT_FACTS = ("url", "sha256", "original_width", "original_height", "similarity", "LICENSE", "license")


@dataclass
class WebDatasetConverter(Converter):
    """Converts all samples of `tars`; `caption_field` of the JSON (None: `.txt`, or else a usual field)."""

    kind = "webdataset"
    summary = "WebDataset tars as img2dataset writes them (image, txt, json)"
    example = """dualtoken prepare webdataset --input 'laion/{00000..00099}.tar' --output data/laion
  dualtoken prepare webdataset --task t2i --input cc3m 'cc12m/*.tar' --output data/cc --workers 8"""

    tars: list[Path]
    caption_field: str | None = None
    licence: str = "unknown"
    options: CaptionOptions = field(default_factory=CaptionOptions)

    def __post_init__(self) -> None:
        first = one_line(self.tars[0].name)
        self.name = f"{first} … ({len(self.tars)} tars)" if len(self.tars) > 1 else first
        self.records_per_sample = self.options.records_per_sample
        self._skipped: Counter[str] = Counter()

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        inputs = "tars, folders of tars, globs ('a/*.tar') or ranges ('a/{00000..00099}.tar')"
        parser.add_argument("--input", nargs="+", required=True, metavar="TARS", help=inputs)
        CaptionOptions.add_arguments(parser, "field of the JSON")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> WebDatasetConverter:
        options = CaptionOptions.from_arguments(args)
        return cls(find_tars(args.input), args.caption_column, args.licence, options)

    def settings(self) -> dict[str, Any]:
        return {"caption_field": self.caption_field, **asdict(self.options)}

    def inputs(self) -> Inputs:
        linked = {Path(os.path.realpath(tar)).parent for tar in self.tars if tar.is_symlink()}
        return {"--input": sorted({tar.parent for tar in self.tars} | linked)}

    def fingerprint(self) -> str:
        return files_fingerprint(self.tars)

    def skipped(self) -> Mapping[str, int]:
        return self._skipped

    def samples(self) -> Iterator[Sample | Rejected]:
        self._skipped.clear()
        for tar in self.tars:
            for found in tar_samples(tar, self._skipped):
                yield found if isinstance(found, Rejected) else Sample(f"{tar.name}: {found.key}", found)

    def records(self, payload: TarSample) -> Iterator[tuple[Record, str]]:
        members = _contents(payload)
        facts = _facts(members)
        image = next((ending for ending in members if ending not in TEXT_ENDINGS), None)
        if image is None:
            raise RecordError(_why_no_image(facts))
        if "txt" in members and self.caption_field is None:
            captions = caption_list(utf8_text(members["txt"], ".txt"))
        else:
            captions = caption_list(find_caption(facts, self.caption_field))
        encoded = self.options.images.stored(members[image], f"{payload.key}.{image}")
        metadata = {name: facts[name] for name in KEPT_FACTS if facts.get(name) is not None}
        record_id = f"{tar_stem(payload.tar)}/{payload.key}"
        yield from self.options.records(record_id, encoded, captions, metadata)


def tar_stem(tar: Path) -> str:
    """The name of a tar without its suffix, with characters escaped that UTF-8 cannot encode."""
    suffix = next((suffix for suffix in TAR_SUFFIXES if tar.name.lower().endswith(suffix)), tar.suffix)
    return one_line(tar.name[: len(tar.name) - len(suffix)])


def _contents(sample: TarSample) -> dict[str, bytes]:
    with sample.tar.open("rb") as file:
        return {ending: _read(file, content) for ending, content in sample.members.items()}


def _read(file: Any, content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    offset, length = content
    file.seek(offset)
    data = bytes(file.read(length))
    if len(data) < length:
        raise RecordError("the tar is cut short")
    return data


def _facts(members: Mapping[str, bytes]) -> dict[str, Any]:
    facts = json_value(members["json"], ".json") if "json" in members else {}
    return facts if isinstance(facts, dict) else {}


def _why_no_image(facts: dict[str, Any]) -> str:
    if "messages" in facts or "conversations" in facts:
        return "it holds a conversation, not an image with a caption"
    message = facts.get("error_message") or facts.get("status")
    return f"no image, its download failed ({one_line(message)})" if message else "no image"
