"""Conversations: the one record type of every task, and the one template that turns it into a sequence.

A conversation is a list of messages `{"role": "user" | "assistant", "content": [part, ...]}`; a part is
`{"type": "text", "text": ...}`, `{"type": "image", "image": path or PIL image}` (also under `url` or `path`,
the names transformers uses), `{"type": "image", "pixel_codes": ..., "semantic_codes": ...}` (cached codes of
the visual tokenizer), or `{"type": "unconditional"}`, the learned stand-in for "no prompt" of classifier-free
guidance.

The template of one turn, `<|image|>` standing once per visual position:

    <|user|> ... text and <|image_start|><|image|>...<|image_end|> ... <|end|>
    <|assistant|> ... <|end|>

with `<|bos|>` before the first turn. Trained on: everything of an assistant turn after its `<|assistant|>`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..tokenizer.errors import UserError

BOS, PAD, USER, ASSISTANT, END = "<|bos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
IMAGE_START, IMAGE, IMAGE_END, UNCONDITIONAL = (
    "<|image_start|>",
    "<|image|>",
    "<|image_end|>",
    "<|unconditional|>",
)
SPECIAL_TOKENS = (BOS, PAD, USER, ASSISTANT, END, IMAGE_START, IMAGE, IMAGE_END, UNCONDITIONAL)

ROLE_TOKENS = {"user": USER, "assistant": ASSISTANT}

Message = dict[str, Any]


@dataclass(frozen=True)
class Segment:
    """A stretch of the sequence: exactly one of `special` (a special token), `text`, `image` (an image part).

    `is_target` marks what the model is trained to produce.
    """

    special: str | None = None
    text: str | None = None
    image: Mapping[str, Any] | None = None
    is_target: bool = False


def normalise_messages(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Check a conversation and bring it to the one canonical form (content as a list of typed parts).

    Plain strings as content become one text part; image sources under `url` or `path` move to `image`.

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


def render(messages: Iterable[Mapping[str, Any]], add_generation_prompt: bool = False) -> list[Segment]:
    """The template: a conversation as segments, in order. Training, generation and evaluation all call this.

    `add_generation_prompt` appends the opening of an assistant turn, for the model to go on from.
    """
    segments = [Segment(special=BOS)]
    for message in normalise_messages(messages):
        is_target = message["role"] == "assistant"
        segments.append(Segment(special=ROLE_TOKENS[message["role"]]))
        for part in message["content"]:
            segments.extend(_render_part(part, is_target))
        segments.append(Segment(special=END, is_target=is_target))
    if add_generation_prompt:
        segments.append(Segment(special=ASSISTANT))
    return segments


def continue_last_message(segments: Sequence[Segment]) -> list[Segment]:
    """Segments without the final `<|end|>`, so that generation goes on inside the last turn."""
    return list(segments[:-1]) if segments and segments[-1].special == END else list(segments)


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
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise UserError(f"message {index} needs the keys 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in ROLE_TOKENS:
        raise UserError(f"message {index} has role {role!r}; allowed: {', '.join(ROLE_TOKENS)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    elif isinstance(content, Mapping) or not isinstance(content, Iterable):
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
    if not isinstance(part, Mapping) or "type" not in part:
        raise UserError(f"{where} needs a 'type': text or image")
    kind = part["type"]
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise UserError(f"{where} is of type text and needs a string under 'text'")
        return {"type": "text", "text": part["text"]}
    if kind == "unconditional":
        return {"type": "unconditional"}
    if kind == "image":
        return _normalise_image(where, part)
    raise UserError(f"{where} has type {kind!r}; allowed: text, image")


def _normalise_image(where: str, part: Mapping[str, Any]) -> dict[str, Any]:
    if ("pixel_codes" in part) != ("semantic_codes" in part):
        raise UserError(f"{where}: cached codes need both 'pixel_codes' and 'semantic_codes'")
    if has_cached_codes(part):
        return {"type": "image", "pixel_codes": part["pixel_codes"], "semantic_codes": part["semantic_codes"]}
    source = next((part[key] for key in ("image", "url", "path") if part.get(key) is not None), None)
    if source is None:
        raise UserError(f"{where} is of type image and needs 'image' (path or PIL image) or cached codes")
    return {"type": "image", "image": source}


def _render_part(part: Mapping[str, Any], is_target: bool) -> list[Segment]:
    if part["type"] == "text":
        return [Segment(text=part["text"], is_target=is_target)] if part["text"] else []
    if part["type"] == "unconditional":
        return [Segment(special=UNCONDITIONAL, is_target=is_target)]
    return [
        Segment(special=IMAGE_START, is_target=is_target),
        Segment(image=part, is_target=is_target),
        Segment(special=IMAGE_END, is_target=is_target),
    ]
