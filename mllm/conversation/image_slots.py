"""Images given apart from a text or a conversation, distributed to its slots.

Transformers' processors accept `images=` with messages that have bare `{"type": "image"}` parts, and with
texts that a chat template has rendered.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ...common.errors import UserError
from .chat_format import ChatFormat
from .messages import IMAGE_KINDS, has_cached_codes, image_source
from .rendering import Segment, render
from .special_tokens import IMAGE, IMAGE_END, IMAGE_START, VISUAL_TOKENS

_RUN = re.compile(f"(?:{re.escape(IMAGE)})+")


class NoImage:
    """The image of a placeholder in a conversation that is only rendered as text."""


def text_segments(
    texts: Sequence[str | None], images: Any, positions: int, chat_format: ChatFormat, starts: Sequence[str]
) -> list[list[Segment]]:
    """Texts with their images, each as a prompt that the model answers.

    A text that a chat template has rendered is kept, with its slots filled. Any other, or None for images
    alone, becomes a user's turn.

    Args:
        images: as in `distribute`.
        positions: visual positions of one image; as many `<|image|>` in a row are one slot.
        starts: special tokens with which a rendered text may begin.

    Raises:
        UserError: images and slots do not fit.
    """
    starts = [start for start in (chat_format.start + chat_format.user_start, *starts) if start.strip()]
    begins = tuple(start for start in starts if start not in VISUAL_TOKENS)
    rendered = [text is not None and text.lstrip().startswith(begins) for text in texts]
    pieces = [[] if text is None else list(_pieces(text, positions)) for text in texts]
    counts = [parts.count(None) for parts in pieces]
    slots = [count if done or count else None for done, count in zip(rendered, counts, strict=True)]
    contents = map(_content, pieces, distribute(images, slots))
    return [
        [segment for part in content for segment in _markup_segments(part)]
        if done
        else render([{"role": "user", "content": content}], True, chat_format)
        for content, done in zip(contents, rendered, strict=True)
    ]


def _content(pieces: Sequence[str | None], images: Sequence[Any]) -> list[dict[str, Any]]:
    """Pieces of text and slots (None) as content: images fill the slots, or precede a text without slots."""
    rest = iter([{"type": "image", "image": image} for image in images])
    parts = [] if None in pieces else list(rest)
    for piece in pieces:
        if piece != "" or len(pieces) == 1:
            parts.append(next(rest) if piece is None else {"type": "text", "text": piece})
    return parts


def _markup_segments(part: dict[str, Any]) -> list[Segment]:
    if part["type"] == "text":
        return [Segment(markup=part["text"])]
    return [Segment(special=IMAGE_START), Segment(image=part), Segment(special=IMAGE_END)]


def distribute(images: Any, slots: Sequence[int | None]) -> list[list[Any]]:
    """The images of each of several texts.

    images: None; for one text an image or a list; for several one entry per text (an image, a list, or None),
        or all images in one list.
    slots: the number of images of each text; None for one that accepts any number.

    Raises:
        UserError: they do not fit.
    """
    if images is None:
        given: list[list[Any]] = [[] for _ in slots]
    elif len(slots) == 1:
        given = [_flat(images)]
    else:
        given = [_flat(entry) for entry in (images if isinstance(images, list | tuple) else [images])]
        pairs = zip(given, slots, strict=False)
        if len(given) != len(slots) or any(room not in (None, len(found)) for found, room in pairs):
            given = _in_a_row(_flat(given), slots)
    if len(given) != len(slots):
        raise UserError(f"{len(slots)} texts but images for {len(given)}; give one entry per text")
    for number, (found, room) in enumerate(zip(given, slots, strict=True), start=1):
        if room is not None and len(found) != room:
            where = f"text {number}" if len(slots) > 1 else "the text"
            raise UserError(
                f"{where} has {room} slots for images, and {len(found)} images are given: give one for each "
                f"{IMAGE} of a rendered text, or for each {{'type': 'image'}} of a conversation"
            )
    return given


def placeholders(conversation: Any) -> int:
    """The number of a conversation's image parts that have no image."""
    messages = conversation if isinstance(conversation, list | tuple) else ()
    return sum(_is_placeholder(part) for message in messages for part in _parts(message))


def filled(conversation: Any, images: Iterable[Any]) -> Any:
    """The conversation with its placeholders replaced by `images`, in order of appearance."""
    rest = iter(images)

    def fill(part: Any) -> Any:
        return {"type": "image", "image": next(rest)} if _is_placeholder(part) else part

    return [
        {**message, "content": list(map(fill, parts))} if (parts := _parts(message)) else message
        for message in conversation
    ]


def _parts(message: Any) -> Sequence[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, list | tuple) else ()


def _is_placeholder(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and isinstance(part.get("type"), str)
        and part["type"] in IMAGE_KINDS
        and not has_cached_codes(part)
        and image_source(part) is None
    )


def _flat(entry: Any) -> list[Any]:
    """The images of an entry: none, one, a list, or a list in a list."""
    if entry is None:
        return []
    if not isinstance(entry, list | tuple):
        return [entry]
    return [image for item in entry for image in _flat(item)]


def _in_a_row(images: list[Any], slots: Sequence[int | None]) -> list[list[Any]]:
    """Images in order of the slots, where the numbers agree; otherwise one for each text."""
    if None in slots or sum(room or 0 for room in slots) != len(images):
        return [[image] for image in images]
    rest = iter(images)
    return [list(islice(rest, room)) for room in slots]


def _pieces(text: str, positions: int) -> Iterator[str | None]:
    """The text between slots, and None for each slot; the tokens that enclose an image are left out."""
    end = 0
    for run in _RUN.finditer(text):
        yield text[end : run.start()].removesuffix(IMAGE_START)
        count = len(run[0]) // len(IMAGE)
        yield from [None] if count == positions else [None] * count
        end = run.end()
        if text.startswith(IMAGE_END, end):
            end += len(IMAGE_END)
    yield text[end:]
