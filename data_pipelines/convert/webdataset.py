"""WebDataset tars as img2dataset writes them to shards.

A sample is the members of one key: an image, its caption as `.txt`, and facts about it as `.json`. A failed
download has no image; it is counted with the reason that its `.json` gives.
"""

from __future__ import annotations

import argparse
import fnmatch
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import braceexpand

from ...common.errors import UserError, one_line, shown
from ...common.json_files import JsonError, parse_json
from ...common.outputs import Inputs
from ...common.paths import regular_file, user_path, walk_files
from ..records import Record, RecordError
from .captions import CaptionOptions, caption_list, find_caption
from .converter import Converter
from .samples import Rejected, Sample, files_fingerprint, utf8_text
from .tar_samples import TEXT_ENDINGS, Content, TarSample, tar_samples

#: Facts of img2dataset's JSON that are kept as metadata.
KEPT_FACTS = ("url", "sha256", "original_width", "original_height", "similarity", "LICENSE", "license")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
#: Files that one pattern may mean.
MOST_TARS = 1_000_000
_DEEPEST_BRACES = 16


@dataclass
class WebDatasetConverter(Converter):
    """All samples of `tars`, in order.

    `caption_field` is a field of the JSON; None takes the `.txt`, then a field of a usual name.
    """

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
        return "".join(files_fingerprint([tar], tar.parent) for tar in self.tars)

    def skipped(self) -> Mapping[str, int]:
        return self._skipped

    def samples(self) -> Iterator[Sample | Rejected]:
        self._skipped.clear()
        for tar in self.tars:
            for sample in tar_samples(tar, self._skipped):
                if isinstance(sample, Rejected):
                    yield sample
                else:
                    yield Sample(f"{tar.name}: {sample.key}", sample)

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


def find_tars(patterns: Sequence[str]) -> list[Path]:
    """The tars that names, folders, globs and brace expressions mean, in order and each once.

    `part/{00000..00009}.tar` names ten files; `part/*.tar` those that are there; a folder all its tars. What
    is there under exactly the given name is that file or folder, whatever characters its name has.
    Raises UserError for a pattern that means nothing, and for one that means too many files.
    """
    tars: dict[Path, None] = {}
    for pattern in patterns:
        for name in _expanded(pattern if "://" in pattern else str(user_path(pattern))):
            found = _meant(name)
            if not found:
                raise UserError(f"--input {name} is not a tar, nor a folder or pattern of tars.")
            tars.update(dict.fromkeys(found))
    return list(tars)


def tar_stem(tar: Path) -> str:
    """The name of a tar without its ending, and without what UTF-8 cannot hold."""
    suffix = next((suffix for suffix in TAR_SUFFIXES if tar.name.lower().endswith(suffix)), tar.suffix)
    return one_line(tar.name[: len(tar.name) - len(suffix)])


def _meant(name: str) -> list[Path]:
    """The tars that a name without braces means."""
    path = Path(name)
    if os.path.isdir(path):
        return sorted(child for child in path.iterdir() if child.name.lower().endswith(TAR_SUFFIXES))
    if not os.path.lexists(path) and glob.has_magic(name):
        return _below(path) if "**" in path.parts else sorted(map(Path, glob.glob(name)))
    if "://" in name:
        raise UserError(
            f"--input {shown(name)} is an address: download the tars first, and name their folder"
        )
    return [regular_file(path, "--input")]


def _below(pattern: Path) -> list[Path]:
    """The files that a pattern with `**` means, each once: unlike those of `glob`, loops of links end."""
    literal = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    wanted = [part for part, _ in itertools.groupby(pattern.parts[len(literal) :])]
    root = Path(*literal)
    return [path for path in walk_files(root) if _matches(path.relative_to(root).parts, wanted)]


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path fit those of a pattern; `**` stands for any folders that are not hidden."""
    if not parts or not wanted:
        return not parts and all(part == "**" for part in wanted)
    hidden = parts[0].startswith(".")
    if wanted[0] == "**":
        return _matches(parts, wanted[1:]) or (not hidden and _matches(parts[1:], wanted))
    fits = fnmatch.fnmatchcase(parts[0], wanted[0]) and hidden <= wanted[0].startswith(".")
    return fits and _matches(parts[1:], wanted[1:])


def _expanded(pattern: str) -> Iterator[str]:
    """The names that the braces of a pattern mean. UserError where there are too many, counted beforehand."""
    if os.path.lexists(pattern) or "{" not in pattern:
        return iter([pattern])
    if _count(pattern) > MOST_TARS:
        raise UserError(
            f"--input {shown(pattern)} names more than {MOST_TARS} files; give fewer, or a folder"
        )
    try:
        return iter(braceexpand.braceexpand(pattern))
    except ValueError:
        raise UserError(f"--input {shown(pattern)}: its braces do not match") from None


_NUMBERS = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?")
_LETTERS = re.compile(r"[A-Za-z]\.\.[A-Za-z](?:\.\.-?\d+)?")


def _count(pattern: str) -> int:
    """How many names the braces of a pattern mean, without making them; ranges are counted without steps."""
    # Of every open brace: the names of its finished alternatives, those of the one at hand, where it starts.
    levels = [(0, 1, 0)]
    escaped = False
    for position, character in enumerate(pattern):
        if escaped or character == "\\":
            escaped = not escaped
            continue
        alternatives, names, start = levels[-1]
        if character == "{":
            levels.append((0, 1, position + 1))
        elif character == "," and len(levels) > 1:
            levels[-1] = (alternatives + names, 1, start)
        elif character == "}" and len(levels) > 1:
            levels.pop()
            outer, before, first = levels[-1]
            here = _range_size(pattern[start:position]) or alternatives + names
            levels[-1] = (outer, before * here, first)
        if len(levels) > _DEEPEST_BRACES or levels[-1][1] > MOST_TARS or levels[-1][0] > MOST_TARS:
            return MOST_TARS + 1
    return levels[0][1]


def _range_size(inner: str) -> int | None:
    """How many numbers or letters a range has, without its step; None for what is not a range."""
    if _LETTERS.fullmatch(inner):
        return 52
    if (found := _NUMBERS.fullmatch(inner)) is None:
        return None
    if len(inner) > 40:  # int() refuses numbers of thousands of digits
        return MOST_TARS + 1
    return abs(int(found[2]) - int(found[1])) + 1


def _contents(sample: TarSample) -> dict[str, bytes]:
    if all(isinstance(content, bytes) for content in sample.members.values()):
        return {ending: content for ending, content in sample.members.items() if isinstance(content, bytes)}
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
    try:
        facts = parse_json(members["json"]) if "json" in members else {}
    except JsonError as error:
        raise RecordError(f"its .json is not JSON ({error})") from None
    return facts if isinstance(facts, dict) else {}


def _why_no_image(facts: dict[str, Any]) -> str:
    if "messages" in facts or "conversations" in facts:
        return "it holds a conversation, not an image with a caption"
    message = facts.get("error_message") or facts.get("status")
    return f"no image, its download failed ({one_line(message)})" if message else "no image"
