"""Convert LLaVA's conversation JSON: one JSON list, or JSON lines.

An entry is ``{"id", "image", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, …]}``
with one image (a file name, a data: URL or base64), a list of images, or none; or it has "messages" with
"role" and "content", and "images". Every ``<image>`` mark stands for the next image of the list: an input in
a human turn, an image to generate in a gpt turn. All other fields go to the metadata.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...common import arguments
from ...common.errors import UserError, one_line, shown
from ...common.files import file_checksum
from ...common.images.sources import inline_image
from ...common.json_files import JsonError
from ...common.outputs import Inputs
from ...common.paths import regular_file, user_path
from ..records import Part, Record, RecordError, image_part
from .converter import Converter
from .foreign_values import as_list, first_given, optional_text
from .rows import is_json_list, read_entries
from .samples import INLINE, ImageOptions, Sample, read_image
from .turns import check_marks, check_no_media, conversation, read_turns

_KNOWN_FIELDS = ("id", "image", "images", "conversations", "messages")


@dataclass
class LlavaConverter(Converter):
    """Converts the conversations of one file; images are in `image_folder` (None: the folder of the file)."""

    kind = "llava"
    summary = "conversations in LLaVA's JSON or JSON lines"
    example = "dualtoken prepare llava --input llava.json --image-folder images --output data/llava"

    path: Path
    image_folder: Path | None = None
    licence: str = "unknown"
    options: ImageOptions = field(default_factory=ImageOptions)

    def __post_init__(self) -> None:
        self.path = regular_file(user_path(self.path), "--input")
        self.folder = user_path(self.image_folder or self.path.parent)
        if not self.folder.is_dir():
            raise UserError(f"--image-folder {self.folder} is not a folder.")
        self.name = one_line(self.path.name)
        self._entries: list[Any] | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", type=arguments.path, required=True, help="the data set")
        parser.add_argument("--image-folder", type=arguments.path, help="default: the folder of the JSON")
        ImageOptions.add_arguments(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> LlavaConverter:
        return cls(args.input, args.image_folder, args.licence, ImageOptions.from_arguments(args))

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def inputs(self) -> Inputs:
        return {"--input": self.path, "--image-folder": self.folder}

    def fingerprint(self) -> str:
        return file_checksum(self.path)

    def total(self) -> int:
        if is_json_list(self.path):
            self._entries = list(read_entries(self.path))  # parsed at once anyway
            return len(self._entries)
        with self.path.open("rb") as file:
            return sum(bool(line.strip()) for line in file)

    def samples(self) -> Iterator[Sample]:
        entries = read_entries(self.path) if self._entries is None else self._entries
        for number, entry in enumerate(entries, start=1):
            yield Sample(_entry_name(number, entry), (number, entry))

    def records(self, payload: tuple[int, Any]) -> Iterator[tuple[Record, str]]:
        number, entry = payload
        default_id = f"{one_line(self.path.stem)}-{number}"
        record = llava_record(entry, self.folder, default_id, options=self.options)
        yield record, self.options.split(record.id)


def _entry_name(number: int, entry: Any) -> str:
    given = entry.get("id") if isinstance(entry, dict) else None
    return f"entry {number}" if given is None else f"entry {number} ({one_line(given, 80)})"


def llava_record(
    entry: Any, image_folder: Path, default_id: str, *, options: ImageOptions | None = None
) -> Record:
    """One entry as a record. RecordError where it is malformed or an image is unusable."""
    if isinstance(entry, JsonError):
        raise RecordError(f"it is not JSON: {entry}")
    if not isinstance(entry, Mapping):
        raise RecordError(f"it is {shown(entry)}, not a JSON object")
    check_no_media(entry)
    given = first_given(entry, "conversations", "messages")
    if given is None:
        raise RecordError("it has no list under 'conversations' or 'messages'")
    turns = read_turns(given)
    names = as_list(entry.get("image") or entry.get("images"))
    check_marks(turns, len(names))  # before the images are read, which is expensive

    def read(name: Any) -> Part:
        return image_part(read_image(image_folder, name, options or ImageOptions()))

    messages = conversation(turns, [read(name) for name in names], read)
    metadata = {key: value for key, value in entry.items() if key not in _KNOWN_FIELDS}
    if names:
        metadata["images"] = [name if inline_image(name) is None else INLINE for name in names]
    return Record(optional_text(entry.get("id"), "id") or default_id, messages, metadata).validate()
