"""Read conversations in the usual formats of data sets as messages.

A turn is `{"from": "human", "value": text}`, `{"role": "user", "content": text or parts}`, or a pair
`{"user": …, "assistant": …}`. Every `<image>` in a text, and every image part without a source, stands for
the next image of the entry's list. null counts as absent; video and audio are refused.
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
#: Marks like LLaVA's for unsupported media; closed as in HTML, they are part of the text.
_MEDIA_MARK = re.compile(r"<(video|audio)>", re.IGNORECASE)


@dataclass(frozen=True)
class ImageMark:
    """The position of an image: the image `source`, or None for the next one of the entry's list."""

    source: Any = None


@dataclass(frozen=True)
class Turn:
    """One turn: its role, and its texts and images in order."""

    role: str
    pieces: list[str | ImageMark]

    @property
    def num_marks(self) -> int:
        """The number of images of the entry's list in this turn."""
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
        raise RecordError(f"its conversation is {shown(value)}, not a list of turns")
    return [turn for given in value for turn in _turns_of(given)]


def check_marks(turns: Sequence[Turn], num_images: int) -> None:
    """Raise RecordError unless the turns have one <image> mark for each image."""
    marks = sum(turn.num_marks for turn in turns)
    if marks != num_images:
        raise RecordError(f"the number of images ({num_images}) and of {IMAGE_MARK} marks ({marks}) differ")


def mark_images(turns: Sequence[Turn], num_images: int) -> list[Turn]:
    """The turns, with the images at the start of the first user turn when no turn has a mark."""
    turns = list(turns)
    if num_images and not any(turn.num_marks for turn in turns):
        first = next((n for n, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            raise RecordError("no user turn for its images")
        pieces = [*([ImageMark()] * num_images), *turns[first].pieces]
        turns[first] = replace(turns[first], pieces=pieces)
    check_marks(turns, num_images)
    return turns


def conversation(
    turns: Sequence[Turn], images: Sequence[Part], read: Callable[[Any], Part] | None = None
) -> list[Message]:
    """The messages of turns; a mark becomes the next of `images`, or `read(source)` where it has a source.

    White space around images is removed. Raises RecordError.
    """
    waiting = iter(images)

    def part(mark: ImageMark) -> Part:
        if mark.source is None:
            return next(waiting)
        if read is None:
            raise RecordError(f"a turn has the image {shown(mark.source)}, which is not supported here")
        return read(mark.source)

    return [{"role": turn.role, "content": list(_parts(turn.pieces, part))} for turn in turns]


def check_no_media(entry: Mapping[str, Any]) -> None:
    """Raise RecordError where a field that is not null holds video or audio."""
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
    """A dict of lists as a list of dicts: `datasets` returns a sequence of dicts in this form."""
    lists = {name: values for name, values in columns.items() if values is not None}
    all_lists = all(isinstance(values, list) for values in lists.values())
    if not all_lists or len(set(map(len, lists.values()))) > 1:
        raise RecordError(f"its conversation is {shown(columns)}, neither turns nor columns of equal length")
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
    """Split a text at its image marks."""
    for kind in sorted({kind.lower() for kind in _MEDIA_MARK.findall(text)}):
        if f"</{kind}>" not in text.lower():
            raise RecordError(no_media(f"the mark <{kind}>", kind))
    first, *others = text.split(IMAGE_MARK)
    return [first, *(piece for other in others for piece in (ImageMark(), other))]
