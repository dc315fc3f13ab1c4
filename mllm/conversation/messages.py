"""Messages of a conversation: the one schema for conversion, storage, training and inference.

A conversation is a list of messages `{"role": "system" | "user" | "assistant", "content": [part, ...]}`; the
content may also be a string. A part is a string, or one of

* `{"type": "text", "text": ...}`, also as OpenAI's responses write it: `input_text`, `output_text`
* `{"type": "image", "image": any argument of load_image}`, also as OpenAI and transformers write it:
  `image_url`, `url`, `path`, `base64`
* `{"type": "image", "pixel_codes": ..., "semantic_codes": ...}`, cached codes of the visual tokenizer
* `{"type": "unconditional"}`, in a user's turn: "no prompt" of classifier-free guidance

Roles may come in any order and repeat; a text may be empty, content may not. null is the same as a missing
key. Video and audio are refused by name.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ...common.errors import UserError, shown
from ...common.json_files import is_encodable
from ...common.paths import is_data_url

ROLES = ("system", "user", "assistant")

Message = dict[str, Any]

#: Types of a part that holds a text: ours, and what OpenAI's responses call it.
TEXT_KINDS = ("text", "input_text", "output_text")
#: Types of a part that holds an image: ours, and what OpenAI's chat and responses call it.
IMAGE_KINDS = ("image", "image_url", "input_image")
_SOURCE_KEYS = ("image", "image_url", "url", "path", "base64", "bytes", "source", "data")
_CODES = ("pixel_codes", "semantic_codes")
_NO_IMAGES = (bool, int, float, list, tuple, dict)
_MEDIA = re.compile(r"(?:input_)?(?:video|audio|sound|speech)s?(?:_url|_path|_file)?", re.IGNORECASE)
#: A placeholder of video or audio begins a line or ends the text; in a sentence the text is about it.
_MARK = re.compile(r"(?:\A\s*|^[ \t]*)<(video|audio)>|<(video|audio)>\s*\Z", re.IGNORECASE | re.MULTILINE)


def normalise_messages(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Check a conversation and bring it to the one canonical form (content as a list of typed parts).

    Raises:
        UserError: names the message and the part that does not fit, counted from 1.
    """
    if not is_list(messages):
        raise UserError(
            "a conversation is a list of messages [{'role': 'user', 'content': ...}], not a single value"
        )
    normalised = [_normalise_message(number, message) for number, message in enumerate(messages, start=1)]
    if not normalised:
        raise UserError(
            "the conversation is empty, it has no messages; give one {'role': 'user', 'content': ...}"
        )
    return normalised


def is_list(value: Any) -> bool:
    """Whether `value` is an iterable of items, not a string, a mapping or an array without dimensions."""
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)
    return several and getattr(value, "ndim", 1) > 0


def add_part(content: list[dict[str, Any]], part: Mapping[str, Any]) -> None:
    """Add a part to a message's content; a text after a text continues it."""
    if part["type"] == "text" and content and content[-1]["type"] == "text":
        content[-1]["text"] += part["text"]
    else:
        content.append(dict(part))


def has_cached_codes(part: Mapping[str, Any]) -> bool:
    """Whether an image part carries codes instead of an image."""
    return part.get("pixel_codes") is not None


def image_source(part: Mapping[str, Any], may_nest: bool = True) -> Any:
    """The image of a part, under any of `_SOURCE_KEYS`; None where there is none.

    OpenAI writes {"image_url": {"url": ...}} or {"image_url": ...}, transformers {"url" | "path" | "base64"},
    datasets {"image": {"bytes": ...}}, others {"source": {"data": ...}}.
    """
    for key in _SOURCE_KEYS:
        source = part.get(key)
        if isinstance(source, Mapping):
            source = image_source(source, may_nest=False) if may_nest else None
        if source is not None:
            bare = key in ("base64", "data") and isinstance(source, str) and not is_data_url(source)
            return f"data:;base64,{source}" if bare else source
    return None


def is_media(kind: Any) -> bool:
    """Whether a part of this type, or a field of this name, holds video or audio."""
    return isinstance(kind, str) and _MEDIA.fullmatch(kind) is not None


def media_kind(name: str) -> str:
    """The kind, "video" or "audio", of a type or field that `is_media`."""
    return "video" if "video" in name.lower() else "audio"


def no_media(what: str, kind: str) -> str:
    """The reason why `what`, which is of the kind "video" or "audio", is refused."""
    return f"{what} is {kind}, which is not supported: only text and images are"


def text_problem(text: str) -> str | None:
    """The reason why `text` cannot be an input, or None."""
    if not is_encodable(text):
        return "the text has half of a surrogate pair, or bytes that are not UTF-8"
    if "\0" in text:
        return "the text has a NUL character"
    if "<" in text:
        kinds = {(first or second).lower() for first, second in _MARK.findall(text)}
        for kind in sorted(kinds):
            if f"</{kind}>" not in text.lower():  # a closed one is HTML
                return no_media(f"the mark <{kind}>", kind)
    return None


def _normalise_message(number: int, message: Mapping[str, Any]) -> Message:
    where = f"message {number}"
    # `dict` first: a check against an abstract type takes longer, and records have many parts.
    if not isinstance(message, dict | Mapping):
        raise UserError(f"{where} is {shown(message)}; give an object with 'role' and 'content'")
    role, content = message.get("role"), message.get("content")
    if role is None or content is None:
        raise UserError(f"{where} needs the keys 'role' and 'content', and neither may be null")
    if not isinstance(role, str) or role not in ROLES:
        raise UserError(f"{where} has role {shown(role)}; allowed: {', '.join(ROLES)}")
    if isinstance(content, str):
        content = [content]
    elif not is_list(content):
        raise UserError(f"{where}: content is a string or a list of parts, not {type(content).__name__}")
    parts = [_normalise_part(f"{where}, part {index}", part, role) for index, part in enumerate(content, 1)]
    if not parts:
        raise UserError(f"{where}: content is an empty list; give a string or at least one part")
    return {"role": role, "content": parts}


def _normalise_part(where: str, part: Any, role: str) -> dict[str, Any]:
    if isinstance(part, str):
        part = {"type": "text", "text": part}
    if not isinstance(part, dict | Mapping) or not isinstance(part.get("type"), str):
        raise UserError(f"{where} needs a 'type': text or image")
    kind = part["type"]
    if kind in TEXT_KINDS:
        text = part.get("text")
        if not isinstance(text, str):
            raise UserError(f"{where} is of type text and needs a string under 'text', not {shown(text)}")
        if reason := text_problem(text):
            raise UserError(f"{where}: {reason}")
        return {"type": "text", "text": text}
    if kind in IMAGE_KINDS:
        return _normalise_image(where, part)
    if kind == "unconditional":
        if role != "user":
            raise UserError(f"{where}: type 'unconditional' is for the user's turn, not the {role}'s")
        return {"type": "unconditional"}
    if is_media(kind):
        raise UserError(f"{where}: {no_media(f'a part of type {shown(kind)}', media_kind(kind))}")
    raise UserError(f"{where} has type {shown(kind)}; allowed: text, image")


def _normalise_image(where: str, part: Mapping[str, Any]) -> dict[str, Any]:
    source = image_source(part)
    codes = {name: part[name] for name in _CODES if part.get(name) is not None}
    if len(codes) == len(_CODES) and source is None:
        return {"type": "image", **codes}
    if codes or source is None:
        raise UserError(
            f"{where} is of type image and needs either 'image' or both 'pixel_codes' and 'semantic_codes'"
        )
    if source == "" if isinstance(source, str) else isinstance(source, _NO_IMAGES):
        raise UserError(f"{where}: an image is a path, a URL, bytes or a PIL image, not {shown(source)}")
    return {"type": "image", "image": source}
