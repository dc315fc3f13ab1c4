"""Turns of other people's conversations, in the spellings that they have, as messages.

A turn is `{"from": "human", "value": text}`, `{"role": "user", "content": text or parts}`, or a pair
`{"user": …, "assistant": …}`. Every `<image>` in a text, and every image part that names no image, stands for
the next image of the entry's own list. null is the same as absent; video and sound are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...common.errors import shown
from ...common.json_files import JsonError, parse_json
from ...mllm.conversation.messages import (
    IMAGE_KINDS,
    TEXT_KINDS,
    Message,
    image_source,
    is_media,
    media_kind,
    no_media,
)
from ..records import Part, RecordError, text_part
from .foreign_values import first_given, optional_text

IMAGE_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
#: Marks of LLaVA's kind for what is not supported; closed again, as in HTML, it is talked about.
_MEDIA_MARK = re.compile(r"<(video|audio)>", re.IGNORECASE)


@dataclass(frozen=True)
class ImageMark:
    """Where an image stands: `source` names it, None is the next one of the entry's list."""

    source: Any = None


@dataclass(frozen=True)
class Turn:
    """The content of one side: texts and images, in order."""

    role: str
    pieces: list[str | ImageMark]

    @property
    def num_marks(self) -> int:
        """Images of the entry's list that it takes."""
        return sum(isinstance(piece, ImageMark) and piece.source is None for piece in self.pieces)


def read_turns(value: Any) -> list[Turn]:
    """The turns of a conversation: a list, a dict of columns, or JSON text of these. Raises RecordError."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except JsonError as error:
            raise RecordError(f"its conversation is not JSON ({error})") from None
    if isinstance(value, Mapping):
        value = _transposed(value)
    if not isinstance(value, list):
        raise RecordError(f"a conversation is a list of turns, it is {shown(value)}")
    return [turn for given in value for turn in _turns_of(given)]


def check_marks(turns: Sequence[Turn], num_images: int) -> None:
    """Raise RecordError unless the turns have one <image> mark for each image."""
    marks = sum(turn.num_marks for turn in turns)
    if marks != num_images:
        raise RecordError(f"the number of images ({num_images}) and of {IMAGE_MARK} marks ({marks}) differ")


def mark_images(turns: Sequence[Turn], num_images: int) -> list[Turn]:
    """The turns, with the images before the first question when no turn marks where they belong."""
    turns = list(turns)
    if num_images and not any(turn.num_marks for turn in turns):
        first = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            raise RecordError("no user turn that its images could belong to")
        pieces = [*([ImageMark()] * num_images), *turns[first].pieces]
        turns[first] = replace(turns[first], pieces=pieces)
    check_marks(turns, num_images)
    return turns


def conversation(
    turns: Sequence[Turn], images: Sequence[Part], read: Callable[[Any], Part] | None = None
) -> list[Message]:
    """Messages of turns; each mark becomes the next of `images`, one with a source what `read` makes of it.

    White space around an image only separates it from the text. Raises RecordError.
    """
    waiting = iter(images)

    def part(mark: ImageMark) -> Part:
        if mark.source is None:
            return next(waiting)
        if read is None:
            raise RecordError(f"a turn names an image of its own, {shown(mark.source)}")
        return read(mark.source)

    return [{"role": turn.role, "content": list(_parts(turn.pieces, part))} for turn in turns]


def check_no_media(entry: Mapping[str, Any]) -> None:
    """Raise RecordError where a field that is not null holds a video or a sound."""
    field = next((name for name, value in entry.items() if value and is_media(name)), None)
    if field is not None:
        raise RecordError(no_media(f"its field {shown(field)}", media_kind(field)))


def _parts(pieces: Sequence[str | ImageMark], part: Callable[[ImageMark], Part]) -> Iterator[Part]:
    if not any(isinstance(piece, ImageMark) for piece in pieces):
        yield text_part("".join(map(str, pieces)))
        return
    for piece in pieces:
        if isinstance(piece, ImageMark):
            yield part(piece)
        elif piece.strip():
            yield text_part(piece.strip())


def _transposed(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A dict of lists as a list of dicts: what `datasets` makes of a sequence of dicts."""
    lists = {name: values for name, values in columns.items() if values is not None}
    if (
        not all(isinstance(values, list) for values in lists.values())
        or len(set(map(len, lists.values()))) > 1
    ):
        raise RecordError(
            f"a conversation is a list of turns, or columns of equal length, not {shown(columns)}"
        )
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


def _turns_of(given: Any) -> Iterator[Turn]:
    if not isinstance(given, Mapping):
        raise RecordError(f"a turn is {shown(given)}, not an object")
    speaker = first_given(given, "from", "role")
    if speaker is None and first_given(given, "user") is not None:
        yield from (Turn(side, _pieces(given.get(side))) for side in ("user", "assistant"))
        return
    role = _ROLES.get(speaker.strip().lower()) if isinstance(speaker, str) else None
    if role is None:
        raise RecordError(f"a turn is from {shown(speaker)}, expected human, gpt or system")
    yield Turn(role, _pieces(first_given(given, "value", "content")))


def _pieces(content: Any) -> list[str | ImageMark]:
    """Texts and images of one turn."""
    if not isinstance(content, list):
        text = optional_text(content, "turn")
        if text is None:
            raise RecordError("a turn has no text under 'value' or 'content'")
        return _split(text)
    pieces: list[str | ImageMark] = []
    for piece in (piece for part in content for piece in _pieces_of_part(part)):
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    return pieces


def _pieces_of_part(part: Any) -> list[str | ImageMark]:
    if isinstance(part, str):
        return _split(part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if not isinstance(kind, str):
        raise RecordError(f"a part of a turn is {shown(part)}, without a type")
    if kind in TEXT_KINDS:
        text = optional_text(part.get("text"), "text part")
        if text is None:
            raise RecordError("a text part has no text")
        return _split(text)
    if kind in IMAGE_KINDS:
        return [ImageMark(image_source(part))]
    if is_media(kind):
        raise RecordError(no_media(f"a part of type {shown(kind)}", media_kind(kind)))
    raise RecordError(f"a part of a turn is {shown(part)}; allowed are text and image")


def _split(text: str) -> list[str | ImageMark]:
    """A text at its image marks."""
    for kind in sorted({kind.lower() for kind in _MEDIA_MARK.findall(text)}):
        if f"</{kind}>" not in text.lower():
            raise RecordError(no_media(f"the mark <{kind}>", kind))
    first, *others = text.split(IMAGE_MARK)
    return [first, *(piece for other in others for piece in (ImageMark(), other))]
