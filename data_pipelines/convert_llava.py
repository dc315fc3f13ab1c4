"""LLaVA's conversation JSON to shards, without loss.

An entry is ``{"id", "image", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, …]}``
with one image, a list of images, or none. Every ``<image>`` mark stands for the next image of the list: in a
human turn it is input, in a gpt turn something to draw. Files are one JSON list or JSON lines. The other
usual spelling, "messages" with "role" and "content" and images under "images", is read as well; fields that
are neither go to the metadata.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.paths import regular_file
from .convert import ImageOptions, OutputOptions
from .convert_run import Sample, Source, write_source
from .records import Message, Part, Record, RecordError, image_part, text_part
from .shards import file_checksum

IMAGE_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_KNOWN_FIELDS = ("id", "image", "images", "conversations", "messages")


@dataclass
class LlavaSource(Source):
    """The conversations of one JSON or JSON lines file; image names are looked up in `image_folder`."""

    path: Path
    image_folder: Path
    licence: str = "unknown"
    options: ImageOptions = field(default_factory=ImageOptions)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise UserError(
                f"--input {self.path} is not a file: expected conversations as JSON or JSON lines."
            )
        if not self.image_folder.is_dir():
            raise UserError(f"--image-folder {self.image_folder} is not a folder.")
        self.name = self.path.name
        self._entries: list[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_entries": None}

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def fingerprint(self) -> str:
        return file_checksum(self.path)

    def total(self) -> int:
        if is_json_list(self.path):
            self._entries = list(read_entries(self.path))  # parsed as a whole anyway
            return len(self._entries)
        with self.path.open("rb") as file:
            return sum(bool(line.strip()) for line in file)

    def samples(self) -> Iterator[Sample]:
        entries = read_entries(self.path) if self._entries is None else self._entries
        for number, entry in enumerate(entries, start=1):
            yield Sample(_entry_name(number, entry), (number, entry))

    def records(self, payload: tuple[int, Any]) -> Iterator[tuple[Record, str]]:
        number, entry = payload
        record = llava_record(entry, self.image_folder, f"{self.path.stem}-{number}", options=self.options)
        yield record, self.options.split(record.id)


def prepare_llava(
    path: str | os.PathLike[str],
    output: OutputOptions,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    licence: str = "unknown",
    options: ImageOptions | None = None,
) -> dict[str, Any]:
    """Write the conversations of `path` to shards; `image_folder` defaults to the folder of the JSON."""
    folder = Path(image_folder) if image_folder is not None else Path(path).parent
    return write_source(LlavaSource(Path(path), folder, licence, options or ImageOptions()), output)


def read_entries(path: Path) -> Iterator[Any]:
    """The entries of a JSON list, or of JSON lines one by one; a broken line stays text, for a rejection."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        if not is_json_list(path):
            yield from (_parse_line(line) for line in file if line.strip())
            return
        try:
            entries = json.load(file)
        except ValueError as error:
            raise UserError(f"--input {path} is not valid JSON ({error}).") from error
    yield from entries


def is_json_list(path: Path) -> bool:
    """Whether the first character that is no white space opens a list."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        while (character := file.read(1)).isspace():
            pass
        return character == "["


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def _entry_name(number: int, entry: Any) -> str:
    if isinstance(entry, dict) and "id" in entry:
        return f"entry {number} ({entry['id']})"
    return f"entry {number}"


def llava_record(
    entry: Any, image_folder: Path, default_id: str, *, options: ImageOptions | None = None
) -> Record:
    """One entry as a record. Raises RecordError that says what is wrong with it."""
    if not isinstance(entry, dict):
        raise RecordError("it is not a JSON object")
    turns = entry.get("conversations", entry.get("messages"))
    if not isinstance(turns, list):
        raise RecordError("it has no list under 'conversations' or 'messages'")
    given = entry.get("image") or entry.get("images") or []
    names = [given] if isinstance(given, str) else list(given)
    limits = options or ImageOptions()
    # Marks are compared first: reading the images is the dear part.
    check_marks(turns, len(names))
    images = [image_part(read_image(image_folder, name, limits)) for name in names]
    metadata = {key: value for key, value in entry.items() if key not in _KNOWN_FIELDS}
    if names:
        metadata["images"] = names
    return Record(str(entry.get("id", default_id)), conversation(turns, images), metadata).validate()


def check_marks(turns: Sequence[Any], num_images: int) -> None:
    """Raise RecordError unless the turns have one <image> mark for each image."""
    marks = sum(turn_text(turn).count(IMAGE_MARK) for turn in turns)
    if marks != num_images:
        raise RecordError(f"the number of images ({num_images}) and of {IMAGE_MARK} marks ({marks}) differ")


def conversation(turns: Sequence[Any], images: Sequence[Part]) -> list[Message]:
    """Messages of LLaVA's turns (from, value) or of (role, content); each mark becomes the next image."""
    waiting = iter(images)
    messages: list[Message] = []
    for turn in turns:
        given = turn.get("from", turn.get("role"))
        role = _ROLES.get(str(given))
        if role is None:
            raise RecordError(f"a turn is from '{given}', expected human, gpt or system")
        messages.append({"role": role, "content": _turn_parts(turn_text(turn), waiting)})
    return messages


def turn_text(turn: Any) -> str:
    """The text of a turn of either spelling. Raises RecordError for one without a text."""
    text = turn.get("value", turn.get("content")) if isinstance(turn, dict) else None
    if isinstance(text, list):  # parts, as chat templates take them
        pieces = [part.get("text") if part.get("type") == "text" else IMAGE_MARK for part in text]
        text = "".join(map(str, pieces))
    if not isinstance(text, str):
        raise RecordError("a turn has no text under 'value' or 'content'")
    return text


def _turn_parts(value: str, images: Iterator[Part]) -> list[Part]:
    """Text and images of one turn; white space around a mark only separates it from the text."""
    if IMAGE_MARK not in value:
        return [text_part(value)]
    parts: list[Part] = []
    for number, text in enumerate(value.split(IMAGE_MARK)):
        if number:
            parts.append(next(images))
        if text.strip():
            parts.append(text_part(text.strip()))
    return parts


def read_image(folder: Path, name: Any, options: ImageOptions) -> Any:
    """The image file `name` of `folder`, checked. Raises RecordError when it is missing or broken."""
    if not isinstance(name, str) or not name:
        raise RecordError(f"an image is named by a text, got {type(name).__name__}")
    if name.startswith(("http://", "https://")):
        raise RecordError(f"image '{name}': a web address; download it first, for example with img2dataset")
    try:
        data = regular_file(folder / name, "image").read_bytes()
    except (OSError, UserError) as error:
        raise RecordError(f"image '{name}': missing or unreadable") from error
    return options.stored(data, name)
