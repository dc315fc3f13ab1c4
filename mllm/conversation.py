"""Conversations: the one record type of every task, and the one template that turns it into a sequence.

A conversation is a list of messages `{"role": "user" | "assistant", "content": [part, ...]}`; a part is
`{"type": "text", "text": ...}`, `{"type": "image", "image": whatever load_image takes}` (also as OpenAI and
transformers write it: `image_url`, `url`, `path`, `base64`), `{"type": "image", "pixel_codes": ...,
"semantic_codes": ...}` (cached codes of the visual tokenizer), or `{"type": "unconditional"}`, the learned
stand-in for "no prompt" of classifier-free guidance.

The template of one turn in DualToken's own format, `<|image|>` standing once per visual position:

    <|user|> ... text and <|image_start|><|image|>...<|image_end|> ... <|end|>
    <|assistant|> ... <|end|>

with `<|bos|>` before the first turn. A language model that has a chat template of its own keeps it: a
`ChatFormat` holds the strings around the turns. Trained on: the content of an assistant's turn and the token
that ends it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..common.errors import UserError
from .chat_format import OWN, ChatFormat
from .special_tokens import IMAGE, IMAGE_END, IMAGE_START, SPECIAL_TOKENS, UNCONDITIONAL

ROLES = ("user", "assistant")
#: Types of a part that holds an image: ours, and what OpenAI's chat and responses call it.
IMAGE_KINDS = ("image", "image_url", "input_image")
_SOURCE_KEYS = ("image", "image_url", "url", "path", "base64", "bytes", "source", "data")

Message = dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """A stretch of the sequence: exactly one of `special` (a special token of DualToken), `markup` (a string
    of a chat template, in which special tokens are parsed), `text` (in which they are not), `image` (an image
    part).

    `is_target` marks what the model is trained to produce.
    """

    special: str | None = None
    markup: str | None = None
    text: str | None = None
    image: Mapping[str, Any] | None = None
    is_target: bool = False


def normalise_messages(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Check a conversation and bring it to the one canonical form (content as a list of typed parts).

    Plain strings as content become one text part; images under other names (`image_url`, …) move to `image`.

    Raises:
        UserError: names the message and the part that does not fit.
    """
    if isinstance(messages, (str, Mapping)):
        raise UserError(
            "a conversation is a list of messages [{'role': 'user', 'content': ...}], not a single value"
        )
    normalised = [_normalise_message(index, message) for index, message in enumerate(messages)]
    if not normalised:
        raise UserError(
            "the conversation is empty; give at least one message {'role': 'user', 'content': ...}"
        )
    return normalised


def render(
    messages: Iterable[Mapping[str, Any]], add_generation_prompt: bool = False, chat_format: ChatFormat = OWN
) -> list[Segment]:
    """The template: a conversation as segments, in order. Training, generation and evaluation all call this.

    `add_generation_prompt` appends the opening of an assistant turn, for the model to go on from.
    """
    segments = [*_markup(chat_format.start)]
    for message in normalise_messages(messages):
        turn = _render_assistant if message["role"] == "assistant" else _render_user
        segments.extend(turn(message["content"], chat_format))
    if add_generation_prompt:
        segments.extend(_markup(chat_format.assistant_start))
    return segments


def continue_last_message(segments: Sequence[Segment], chat_format: ChatFormat = OWN) -> list[Segment]:
    """Segments without what ends the final turn, so that generation goes on inside it."""
    answer_end = [*_markup(chat_format.end, True), *_markup(chat_format.assistant_end_rest)]
    suffix = _markup(chat_format.answer_suffix, True)
    for ending in ([*suffix, *answer_end], answer_end, [*_markup(chat_format.user_end)]):
        if ending and list(segments[-len(ending) :]) == ending:
            return list(segments[: -len(ending)])
    return list(segments)


def segments_text(segments: Iterable[Segment]) -> str:
    """Segments as one string, an image as a single `<|image|>`."""
    return "".join(
        next(part for part in (segment.special, segment.markup, segment.text, IMAGE) if part is not None)
        for segment in segments
    )


def is_text_to_image(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a record is one text prompt answered by images only; such a prompt may be dropped."""
    if len(messages) != 2 or [message["role"] for message in messages] != ["user", "assistant"]:
        return False
    prompt, answer = (message["content"] for message in normalise_messages(messages))
    return all(part["type"] == "text" for part in prompt) and all(part["type"] == "image" for part in answer)


def drop_prompt(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A text-to-image record with its prompt replaced by `<|unconditional|>`, for classifier-free guidance.

    Any other record comes back as it is: there is no guidance to learn from it.
    """
    normalised = normalise_messages(messages)
    return [*unconditional_prompt(), normalised[1]] if is_text_to_image(normalised) else normalised


def unconditional_prompt() -> list[Message]:
    """The conversation guidance's unconditional branch starts from; equals `drop_prompt`'s user turn."""
    return [{"role": "user", "content": [{"type": "unconditional"}]}]


def has_cached_codes(part: Mapping[str, Any]) -> bool:
    """Whether an image part carries codes instead of an image."""
    return "pixel_codes" in part


def _normalise_message(index: int, message: Mapping[str, Any]) -> Message:
    # Plain types come first: a check against an abstract one takes longer, and records have many parts.
    if not isinstance(message, (dict, Mapping)) or "role" not in message or "content" not in message:
        raise UserError(f"message {index} needs the keys 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise UserError(f"message {index} has role {role!r}; allowed: {', '.join(ROLES)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    elif not isinstance(content, list) and (
        isinstance(content, Mapping) or not isinstance(content, Iterable)
    ):
        raise UserError(
            f"message {index}: content is a text or a list of parts, not {type(content).__name__}"
        )
    where = f"message {index}"
    return {
        "role": role,
        "content": [_normalise_part(where, number, part) for number, part in enumerate(content)],
    }


def _normalise_part(where: str, number: int, part: Any) -> dict[str, Any]:
    where = f"{where}, part {number}"
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, (dict, Mapping)) or "type" not in part:
        raise UserError(f"{where} needs a 'type': text or image")
    kind = part["type"]
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise UserError(f"{where} is of type text and needs a string under 'text'")
        return {"type": "text", "text": part["text"]}
    if kind == "unconditional":
        return {"type": "unconditional"}
    if kind in IMAGE_KINDS:
        return _normalise_image(where, part)
    raise UserError(f"{where} has type {kind!r}; allowed: text, image")


def _normalise_image(where: str, part: Mapping[str, Any]) -> dict[str, Any]:
    if ("pixel_codes" in part) != ("semantic_codes" in part):
        raise UserError(f"{where}: cached codes need both 'pixel_codes' and 'semantic_codes'")
    if has_cached_codes(part):
        return {"type": "image", "pixel_codes": part["pixel_codes"], "semantic_codes": part["semantic_codes"]}
    source = _image_source(part)
    if source is None:
        raise UserError(f"{where} is of type image and needs 'image' (path or PIL image) or cached codes")
    return {"type": "image", "image": source}


def _image_source(part: Mapping[str, Any], may_nest: bool = True) -> Any:
    """The image of a part, under whichever of `_SOURCE_KEYS` it stands; None where it has none.

    OpenAI writes {"image_url": {"url": ...}} or {"image_url": ...}, transformers {"url" | "path" | "base64"},
    datasets {"image": {"bytes": ...}}, others {"source": {"data": ...}}.
    """
    for key in _SOURCE_KEYS:
        source = part.get(key)
        if isinstance(source, Mapping):
            source = _image_source(source, may_nest=False) if may_nest else None
        if source is not None:
            bare = key in ("base64", "data") and isinstance(source, str) and not source.startswith("data:")
            return f"data:;base64,{source}" if bare else source
    return None


def _render_user(content: list[Message], chat_format: ChatFormat) -> list[Segment]:
    return [
        *_markup(chat_format.user_start),
        *_render_content(content, False, chat_format.trim_user),
        *_markup(chat_format.user_end),
    ]


def _render_assistant(content: list[Message], chat_format: ChatFormat) -> list[Segment]:
    inner = _render_content(content, True, chat_format.trim_assistant)
    # Only text has white space around it: an image starts right where the prompt ends.
    prefix = chat_format.answer_prefix if inner and inner[0].text is not None else ""
    suffix = chat_format.answer_suffix if inner and inner[-1].text is not None else ""
    return [
        *_markup(chat_format.assistant_start),
        *_markup(prefix, True),
        *inner,
        *_markup(suffix, True),
        *_markup(chat_format.end, True),
        *_markup(chat_format.assistant_end_rest),
    ]


def _render_content(content: list[Message], is_target: bool, trim: bool) -> list[Segment]:
    texts = [part["text"] if part["type"] == "text" else None for part in content]
    if trim and texts and texts[0] is not None:
        texts[0] = texts[0].lstrip()
    if trim and texts and texts[-1] is not None:
        texts[-1] = texts[-1].rstrip()
    return [
        segment
        for part, text in zip(content, texts, strict=True)
        for segment in _render_part(part if text is None else {**part, "text": text}, is_target)
    ]


@lru_cache(maxsize=256)  # a format has few strings, and each comes in every record
def _markup(text: str, is_target: bool = False) -> tuple[Segment, ...]:
    """A string of the format; one that is a special token of DualToken's own is a segment of that kind."""
    if text in SPECIAL_TOKENS:
        return (Segment(special=text, is_target=is_target),)
    return (Segment(markup=text, is_target=is_target),) if text else ()


def _render_part(part: Mapping[str, Any], is_target: bool) -> Sequence[Segment]:
    if part["type"] == "text":
        return (Segment(text=part["text"], is_target=is_target),) if part["text"] else ()
    if part["type"] == "unconditional":
        return _markup(UNCONDITIONAL, is_target)
    image = Segment(image=part, is_target=is_target)
    return (*_markup(IMAGE_START, is_target), image, *_markup(IMAGE_END, is_target))
