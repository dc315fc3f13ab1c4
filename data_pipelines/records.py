"""The record type of the package: a conversation whose turns hold text and images.

Converters write records, shards store them and training objectives read them::

    Record("scene-7", [
        {"role": "user", "content": [{"type": "image", "image": <PIL image or path>},
                                     {"type": "text", "text": "How many circles are there?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
    ], metadata={"task": "vqa"})

An image part holds either "image" (a PIL image, a path, or an `EncodedImage`) or cached codes of the visual
tokenizer, "pixel_codes" and "semantic_codes", both of shape (H, W, D). Messages have the schema of
`mllm.conversation.messages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from ..common.errors import UserError, first_line, shown
from ..common.images.reading import open_image
from ..common.json_files import DEEPEST, is_encodable, parse_json
from ..mllm.conversation.messages import Message, normalise_messages

#: Images of one record; with codes, each becomes two members of its sample.
MOST_IMAGES = 4096
#: Records that a user may request.
MOST_RECORDS = 10**12
#: Characters of an id, enough for a long path.
LONGEST_ID = 4096
#: Levels of metadata, which are nested in the JSON object of the record.
DEEPEST_METADATA = DEEPEST - 4

#: Extensions of the image files in shards, by Pillow's name of the format; others are re-encoded.
STORED_FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}

Part = dict[str, Any]


class RecordError(UserError):
    """A record that cannot be used, with the reason. Loaders count and skip it."""


@dataclass(frozen=True)
class EncodedImage:
    """The bytes of an image file, so that photos are stored without a second lossy compression."""

    data: bytes
    extension: str

    def open(self) -> Image.Image:
        """The image, decoded at first use. ImageError where the bytes are not an image."""
        return open_image(self.data)


@dataclass
class Record:
    """One conversation. `metadata` is any JSON object (task, split, scene, source, …)."""

    id: str
    messages: list[Message]
    metadata: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[str, Part]]:
        """(role, part) of every content part, in order."""
        for message in self.messages:
            for part in message["content"]:
                yield message["role"], part

    def image_parts(self) -> list[Part]:
        """Every image part, in order of appearance."""
        return [part for _, part in self.parts() if part["type"] == "image"]

    def texts(self) -> list[str]:
        """Every text, in order of appearance."""
        return [part["text"] for _, part in self.parts() if part["type"] == "text"]

    def has_target(self) -> bool:
        """Whether there is something to learn: an assistant turn with an image or with text."""
        answers = (part for role, part in self.parts() if role == "assistant")
        return any(part["type"] == "image" or part.get("text", "").strip() for part in answers)

    def task(self) -> str:
        """The task in the metadata, or "t2i" (an image is generated), "vqa" (images are input) or "text"."""
        if isinstance(named := self.metadata.get("task"), str):
            return named
        roles = {role for role, part in self.parts() if part["type"] == "image"}
        return "t2i" if "assistant" in roles else "vqa" if roles else "text"

    def validate(self) -> Record:
        """The record itself, with its messages and metadata in the form in which they are stored.

        Raises:
            RecordError: names the part that breaks the schema, and how.
        """
        self.check_messages()
        self.metadata = _plain_json(self.metadata, self.id)
        return self

    def check_messages(self) -> Record:
        """As `validate`, without a check of the metadata, for a record that has just been read from JSON."""
        if not isinstance(self.id, str) or not self.id:
            raise RecordError(f"A record needs a non-empty string as id, got {shown(self.id)}.")
        name = f"Record {shown(self.id)}"
        if len(self.id) > LONGEST_ID:
            raise RecordError(f"{name}: an id has at most {LONGEST_ID} characters")
        if "\0" in self.id or not is_encodable(self.id):
            raise RecordError(f"{name}: its id is not UTF-8 without NUL characters")
        try:
            self.messages = normalise_messages(self.messages)
        except UserError as error:
            raise RecordError(f"{name}: {error}") from None
        if (images := len(self.image_parts())) > MOST_IMAGES:
            raise RecordError(f"{name}: {images} images; at most {MOST_IMAGES} are allowed")
        if self.metadata is None:
            self.metadata = {}
        if not isinstance(self.metadata, dict):
            raise RecordError(f"{name}: metadata must be an object.")
        return self


def require_trainable(record: Record) -> Record:
    """The record itself, if a model can be trained on it. Converters, `check` and training share this check.

    Raises:
        RecordError: a message breaks the schema, or there is nothing to learn.
    """
    record.check_messages()
    if not record.has_target():
        raise RecordError(
            f"Record {shown(record.id)} has nothing to learn: no assistant turn with text or an image"
        )
    return record


def _plain_json(metadata: dict[str, Any], record_id: str) -> dict[str, Any]:
    """Metadata as they will be read back: NaN is null, a tuple is a list. Raises RecordError."""
    try:
        plain: dict[str, Any] = parse_json(json.dumps(metadata, ensure_ascii=False), DEEPEST_METADATA)
        return plain
    except RecursionError:
        reason = f"nested deeper than {DEEPEST_METADATA} levels"
    except (TypeError, ValueError) as error:
        reason = first_line(error)
    raise RecordError(f"Record {shown(record_id)}: metadata cannot be stored as JSON ({reason}).")


def text_part(text: str) -> Part:
    """A part with text."""
    return {"type": "text", "text": text}


def image_part(image: Any) -> Part:
    """A part with an image: a PIL image, a path or an `EncodedImage`."""
    return {"type": "image", "image": image}


def user(*parts: Part | str) -> Message:
    """A user's turn; strings become text parts."""
    return {"role": "user", "content": [text_part(p) if isinstance(p, str) else p for p in parts]}


def assistant(*parts: Part | str) -> Message:
    """An assistant's turn; strings become text parts."""
    return {**user(*parts), "role": "assistant"}


def question_turns(images: Sequence[Part], pairs: Sequence[tuple[str, str]]) -> list[Message]:
    """Questions and answers about the same images, which are in the first user turn only."""
    messages: list[Message] = []
    for question, answer in pairs:
        messages += [user(*([] if messages else images), question), assistant(answer)]
    return messages


def with_image_parts(record: Record, parts: Sequence[Part]) -> Record:
    """A copy of `record` whose image parts are `parts`, in order of appearance."""
    replacements = iter(parts)
    messages = [
        {**m, "content": [next(replacements) if p["type"] == "image" else p for p in m["content"]]}
        for m in record.messages
    ]
    return replace(record, messages=messages)
