"""The one template that turns a conversation, as `messages` defines it, into a sequence.

In DualToken's own format, with one `<|image|>` per visual position:

    <|bos|><|user|> ... text and <|image_start|><|image|>...<|image_end|> ... <|end|>
    <|assistant|> ... <|end|>

An LLM that has a chat template keeps it: a `ChatFormat` holds the strings around the turns. Targets of
training are the content of an assistant's turn and the token that ends it.

A system turn at the start, before a user's, follows the LLM's template. Where the template has no system
role, in DualToken's own format, and later in a conversation, it precedes the text of the next user's turn
with a blank line between, or becomes a user's turn where none follows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .chat_format import OWN, ChatFormat
from .messages import Message, normalise_messages
from .special_tokens import IMAGE, IMAGE_END, IMAGE_START, SPECIAL_TOKENS, UNCONDITIONAL


@dataclass(frozen=True)
class Segment:
    """A part of the sequence: exactly one of `special`, `markup`, `text` and `image` (an image part).

    `special` is a special token of DualToken, `markup` a string of a chat template, in which special tokens
    are parsed; in `text` they are not. `is_target` marks what the model is trained to produce.
    """

    special: str | None = None
    markup: str | None = None
    text: str | None = None
    image: Mapping[str, Any] | None = None
    is_target: bool = False


def render(
    messages: Iterable[Mapping[str, Any]], add_generation_prompt: bool = False, chat_format: ChatFormat = OWN
) -> list[Segment]:
    """A conversation as segments, in order: the one function for training, generation and evaluation.

    `add_generation_prompt` appends the opening of an assistant turn, for the model to continue.
    """
    turns = normalise_messages(messages)
    segments = [*_markup(chat_format.start)]
    if chat_format.system_start is not None and [turn["role"] for turn in turns[:2]] == ["system", "user"]:
        # Some templates enclose the system turn together with the user's turn that follows.
        system, question = turns.pop(0)["content"], turns.pop(0)["content"]
        segments = _framed(chat_format.system_start, system, chat_format.trim_system, chat_format.system_end)
        segments += _framed("", question, chat_format.trim_user, chat_format.user_end)
    for turn in _without_system(turns):
        if turn["role"] == "assistant":
            segments += _render_assistant(turn["content"], chat_format)
        else:
            trim, end = chat_format.trim_user, chat_format.user_end
            segments += _framed(chat_format.user_start, turn["content"], trim, end)
    if add_generation_prompt:
        segments.extend(_markup(chat_format.assistant_start))
    return segments


def continue_last_message(segments: Sequence[Segment], chat_format: ChatFormat = OWN) -> list[Segment]:
    """Segments without the end of the final turn, so that generation continues it."""
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
    """Whether a record is one text prompt, perhaps with a system turn, answered by images only."""
    turns = normalise_messages(messages)
    if [turn["role"] for turn in turns] not in (["user", "assistant"], ["system", "user", "assistant"]):
        return False
    prompt = [part for turn in turns[:-1] for part in turn["content"]]
    answer = turns[-1]["content"]
    return all(part["type"] == "text" for part in prompt) and all(part["type"] == "image" for part in answer)


def drop_prompt(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A text-to-image record with its prompt replaced by `<|unconditional|>`, for classifier-free guidance.

    Other records are returned unchanged.
    """
    normalised = normalise_messages(messages)
    return [*unconditional_prompt(), normalised[-1]] if is_text_to_image(normalised) else normalised


def unconditional_prompt() -> list[Message]:
    """The conversation guidance's unconditional branch starts from; equals `drop_prompt`'s user turn."""
    return [{"role": "user", "content": [{"type": "unconditional"}]}]


def _without_system(turns: Sequence[Message]) -> list[Message]:
    """The turns, each system turn joined to the next user's turn, or a user's turn where none follows."""
    folded: list[Message] = []
    waiting: list[dict[str, Any]] = []
    for turn in turns:
        if turn["role"] == "system":
            waiting = _joined(waiting, turn["content"])
            continue
        if waiting and turn["role"] == "user":
            turn = {"role": "user", "content": _joined(waiting, turn["content"])}
        elif waiting:
            folded.append({"role": "user", "content": waiting})
        waiting = []
        folded.append(turn)
    return [*folded, {"role": "user", "content": waiting}] if waiting else folded


def _joined(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Content of two turns as that of one, separated by a blank line; adjacent texts become one."""
    if all(part.get("text") == "" for part in first):
        return second
    text = "\n\n"
    if first[-1]["type"] == "text":
        text, first = first[-1]["text"] + text, first[:-1]
    if second[0]["type"] == "text":
        text, second = text + second[0]["text"], second[1:]
    return [*first, {"type": "text", "text": text}, *second]


def _framed(start: str, content: list[Message], trim: bool, end: str) -> list[Segment]:
    """Content that is not trained on, between two strings of the format."""
    return [*_markup(start), *_render_content(content, False, trim), *_markup(end)]


def _render_assistant(content: list[Message], chat_format: ChatFormat) -> list[Segment]:
    inner = _render_content(content, True, chat_format.trim_assistant)
    # Only text has white space around it: an image follows the prompt directly.
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


@lru_cache(maxsize=256)  # the few strings of a format are in every record
def _markup(text: str, is_target: bool = False) -> tuple[Segment, ...]:
    """A string of the format, as a segment `special` where it is one of DualToken's special tokens."""
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
