"""LLaVA's conversation JSON to shards, without loss.

An entry is ``{"id", "image", "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, …]}``
with one image, a list of images, or none. Every ``<image>`` mark stands for the next image of the list: in a
human turn it is input, in a gpt turn something to draw. Files are one JSON list or JSON lines.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..tokenizer.errors import UserError
from .convert import Accepted, Item, OutputOptions, rejecting, stored_image, write_items
from .records import EncodedImage, Message, Part, Record, RecordError, image_part, text_part

IMAGE_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def prepare_llava(
    path: str | os.PathLike[str],
    output: OutputOptions,
    *,
    image_folder: str | os.PathLike[str] | None = None,
    licence: str = "unknown",
    max_image_size: int | None = None,
) -> dict[str, Any]:
    """Write the conversations of `path` to shards; `image_folder` defaults to the folder of the JSON."""
    file = Path(path)
    folder = Path(image_folder) if image_folder is not None else file.parent
    entries = read_entries(file)

    def items() -> Iterator[Item]:
        for number, entry in enumerate(entries, start=1):
            name = f"entry {number}"
            if isinstance(entry, dict) and "id" in entry:
                name = f"entry {number} ({entry['id']})"

            def build(entry: Any = entry, number: int = number) -> list[Item]:
                return [Accepted(llava_record(entry, folder, f"{file.stem}-{number}", max_image_size))]

            yield from rejecting(name, build)

    return write_items(
        items(),
        output,
        source=file.name,
        licence=licence,
        settings={"max_image_size": max_image_size},
        total=len(entries),
    )


def read_entries(path: Path) -> list[Any]:
    """The entries of a JSON list or of JSON lines; a broken line is kept as text, to be rejected later."""
    if not path.is_file():
        raise UserError(f"--input {path} is not a file: expected conversations as JSON or JSON lines.")
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except ValueError as error:
            raise UserError(f"--input {path} is not valid JSON ({error}).") from error
    return [_parse_line(line) for line in text.splitlines() if line.strip()]


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return line


def llava_record(
    entry: Any, image_folder: Path, default_id: str, max_image_size: int | None = None
) -> Record:
    """One entry as a record. Raises RecordError that says what is wrong with it."""
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise RecordError("it is not an object with 'conversations'")
    given = entry.get("image") or entry.get("images") or []
    names = [given] if isinstance(given, str) else list(given)
    marks = sum(str(turn.get("value", "")).count(IMAGE_MARK) for turn in entry["conversations"])
    if marks != len(names):
        raise RecordError(f"the number of images ({len(names)}) and of {IMAGE_MARK} marks ({marks}) differ")
    images = iter([_read_image(image_folder / name, max_image_size) for name in names])
    messages: list[Message] = []
    for turn in entry["conversations"]:
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            raise RecordError(f"a turn is from '{turn.get('from')}', expected human, gpt or system")
        messages.append({"role": role, "content": _turn_parts(turn["value"], images)})
    metadata = {"images": names} if names else {}
    return Record(str(entry.get("id", default_id)), messages, metadata).validate()


def _turn_parts(value: str, images: Iterator[EncodedImage]) -> list[Part]:
    """Text and images of one turn; white space around a mark only separates it from the text."""
    if IMAGE_MARK not in value:
        return [text_part(value)]
    parts: list[Part] = []
    for number, text in enumerate(value.split(IMAGE_MARK)):
        if number:
            parts.append(image_part(next(images)))
        if text.strip():
            parts.append(text_part(text.strip()))
    return parts


def _read_image(path: Path, max_image_size: int | None) -> EncodedImage:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"image '{path.name}': missing or unreadable") from error
    return stored_image(data, path.name, max_image_size)
