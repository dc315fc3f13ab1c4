"""The one record type of the package: a conversation whose turns hold text and images.

A record is what every converter writes, every shard stores and every training objective reads::

    Record("scene-7", [
        {"role": "user", "content": [{"type": "image", "image": <PIL image or path>},
                                     {"type": "text", "text": "How many circles are there?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
    ], metadata={"task": "vqa"})

An image part holds either "image" (a PIL image, a path, or an `EncodedImage`) or cached codes of the visual
tokenizer, "pixel_codes" and "semantic_codes", both of shape (H, W, D).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from ..common.errors import UserError

ROLES: tuple[str, ...] = ("system", "user", "assistant")

Part = dict[str, Any]
Message = dict[str, Any]


class RecordError(UserError):
    """A record that cannot be used; the message names it and the reason. Loaders count and skip it."""


@dataclass(frozen=True)
class EncodedImage:
    """An image as the bytes of its file, so that photos are stored without a second lossy compression."""

    data: bytes
    extension: str

    def open(self) -> Image.Image:
        """The image, decoded at first use."""
        return Image.open(io.BytesIO(self.data))


@dataclass
class Record:
    """One conversation. `metadata` is any JSON object: task, split, scene, source, …"""

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
        """Whether a model learns something from it: an assistant turn holds an image or a word."""
        return any(
            role == "assistant" and (part["type"] == "image" or bool(part["text"].strip()))
            for role, part in self.parts()
        )

    def task(self) -> str:
        """ "t2i" where an image is drawn, "vqa" where images are only looked at, else "text"; or as its
        metadata says.
        """
        if isinstance(named := self.metadata.get("task"), str):
            return named
        roles = {role for role, part in self.parts() if part["type"] == "image"}
        return "t2i" if "assistant" in roles else "vqa" if roles else "text"

    def validate(self) -> Record:
        """Return the record itself, or raise RecordError that says which part breaks the schema and how."""
        if not isinstance(self.id, str) or not self.id:
            raise RecordError(f"A record needs a non-empty string as id, got {self.id!r}.")
        if not isinstance(self.messages, list) or not self.messages:
            raise RecordError(f"Record '{self.id}' has no messages.")
        for number, message in enumerate(self.messages, start=1):
            reason = _message_problem(message)
            if reason:
                raise RecordError(f"Record '{self.id}', message {number}: {reason}.")
        if not isinstance(self.metadata, dict):
            raise RecordError(f"Record '{self.id}': metadata must be an object.")
        return self


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        return "a message is an object with 'role' and 'content'"
    if message["role"] not in ROLES:
        return f"role '{message['role']}' is not one of {', '.join(ROLES)}"
    content = message["content"]
    if not isinstance(content, Sequence) or isinstance(content, str) or not content:
        return "content must be a non-empty list of parts"
    return next((reason for part in content if (reason := _part_problem(part))), None)


def _part_problem(part: Any) -> str | None:
    if not isinstance(part, Mapping):
        return "a content part is an object"
    if part.get("type") == "text":
        return None if isinstance(part.get("text"), str) else "a text part needs a string under 'text'"
    if part.get("type") == "image":
        codes = [name in part for name in ("pixel_codes", "semantic_codes")]
        if ("image" in part) != any(codes) and all(codes) == any(codes):
            return None
        return "an image part needs either 'image' or both 'pixel_codes' and 'semantic_codes'"
    return f"a content part's type is 'text' or 'image', got {part.get('type')!r}"


def text_part(text: str) -> Part:
    """A content part of text."""
    return {"type": "text", "text": text}


def image_part(image: Any) -> Part:
    """A content part of an image: a PIL image, a path or an `EncodedImage`."""
    return {"type": "image", "image": image}


def user(*parts: Part | str) -> Message:
    """A user's turn; strings become text parts."""
    return {"role": "user", "content": [text_part(p) if isinstance(p, str) else p for p in parts]}


def assistant(*parts: Part | str) -> Message:
    """An assistant's turn; strings become text parts."""
    return {"role": "assistant", "content": [text_part(p) if isinstance(p, str) else p for p in parts]}


def question_turns(images: Sequence[Part], pairs: Sequence[tuple[str, str]]) -> list[Message]:
    """Questions and answers about the same images: the images stand in the first user turn only."""
    messages: list[Message] = []
    for number, (question, answer) in enumerate(pairs):
        messages.append(user(*images, question) if number == 0 else user(question))
        messages.append(assistant(answer))
    return messages


def with_image_parts(record: Record, parts: Sequence[Part]) -> Record:
    """A copy of `record` whose image parts are `parts`, in order of appearance."""
    replacements = iter(parts)
    messages = [
        {**m, "content": [next(replacements) if p["type"] == "image" else p for p in m["content"]]}
        for m in record.messages
    ]
    return replace(record, messages=messages)
