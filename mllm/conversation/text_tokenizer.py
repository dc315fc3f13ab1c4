"""Text tokenizers with DualToken's special tokens, and conversations as ids."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .chat_format import OWN, ChatFormat
from .chat_template import OWN_TEMPLATE
from .rendering import Segment
from .special_tokens import BOS, END, IMAGE, PAD, SPECIAL_TOKENS, VISUAL_TOKENS, special_strings


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat = OWN) -> int:
    """Add DualToken's special tokens to any tokenizer (an LLM's own); returns how many were new.

    With a format of its own the tokenizer keeps its bos, pad and eos and gets the visual tokens only, and a
    pad token where it has none. With DualToken's format all are added and become its bos, pad and eos; a chat
    template of the tokenizer, which would then be wrong, is replaced by DualToken's own.
    """
    wanted: tuple[str, ...] = SPECIAL_TOKENS
    if not chat_format.is_own:
        wanted = VISUAL_TOKENS if tokenizer.pad_token is not None else (*VISUAL_TOKENS, PAD)
        wanted = (*wanted, *_turn_tokens(tokenizer, chat_format))
    before = len(tokenizer)
    tokens: list[str | AddedToken] = [AddedToken(token, special=True, normalized=False) for token in wanted]
    tokenizer.add_tokens(tokens, special_tokens=True)
    if chat_format.is_own:
        tokenizer.bos_token, tokenizer.pad_token, tokenizer.eos_token = BOS, PAD, END
        tokenizer.chat_template = OWN_TEMPLATE
    elif tokenizer.pad_token is None:
        tokenizer.pad_token = PAD
    return len(tokenizer) - before


def special_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Matches every special token of a tokenizer."""
    return re.compile("|".join(map(re.escape, special_strings(tokenizer))))


def encode_segments(
    tokenizer: PreTrainedTokenizerBase,
    segments: Sequence[Segment],
    num_positions: int,
    special: re.Pattern[str],
) -> Iterator[tuple[list[int], Segment]]:
    """Ids of a rendered conversation, in pieces; all ids of a piece share the segment's `is_target`.

    A chat template's strings and the text between them are encoded together, so that the ids are those which
    the language model was trained on. `special` is the tokenizer's `special_pattern`.
    """
    if not any(segment.markup for segment in segments):  # DualToken's own format: nothing to join
        for segment in segments:
            yield _piece_ids(tokenizer, segment, num_positions), segment
        return
    for (is_written, _), run in groupby(segments, key=_kind):
        pieces = list(run)
        if is_written and any(piece.markup for piece in pieces):
            together = "".join((piece.markup or piece.text or "") for piece in pieces)
            expected = [token for piece in pieces for token in special.findall(piece.markup or "")]
            # With special tokens in the text (or one that text and markup make up) the pieces stay apart.
            if special.findall(together) == expected:
                yield encode_markup(tokenizer, together), pieces[0]
                continue
        for piece in pieces:
            yield _piece_ids(tokenizer, piece, num_positions), piece


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text, never a special token: "<|image|>" in a user's text is just characters."""
    return _encode(tokenizer, text, split_special_tokens=True)


def encode_markup(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a chat template's string, in which special tokens are parsed."""
    return _encode(tokenizer, text, split_special_tokens=tokenizer.split_special_tokens)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, split_special_tokens: bool) -> list[int]:
    """`tokenizer.encode` without what the tokenizer itself adds around a text.

    A record has many short texts, for which the backend needs a quarter of the time that `encode` does.
    """
    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or not (
        kind.encode is PreTrainedTokenizerFast.encode
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    ):
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split_special_tokens)
    backend = tokenizer.backend_tokenizer
    # Settings that earlier calls, or the tokenizer's file, have left; `encode` resets them too.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    backend.encode_special_tokens = split_special_tokens
    return backend.encode(text, add_special_tokens=False).ids


def _kind(segment: Segment) -> tuple[bool, bool]:
    """Whether it is text or markup, which are encoded together, and whether it is a target."""
    return segment.text is not None or segment.markup is not None, segment.is_target


def _piece_ids(tokenizer: PreTrainedTokenizerBase, segment: Segment, num_positions: int) -> list[int]:
    if segment.special is not None:
        return [_special_id(tokenizer, segment.special)]
    if segment.text is not None:
        return encode_text(tokenizer, segment.text)
    if segment.markup is not None:
        return encode_markup(tokenizer, segment.markup)
    return [_special_id(tokenizer, IMAGE)] * num_positions


def _special_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    return tokenizer.convert_tokens_to_ids(token)  # type: ignore[return-value]  # an id for a single token


def _turn_tokens(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> list[str]:
    """Tokens of the format that the tokenizer does not count as special, as which text could write them."""
    markup = "".join((chat_format.start, chat_format.user_start, chat_format.user_end))
    markup += "".join((chat_format.assistant_start, chat_format.end, chat_format.assistant_end_rest))
    markup += (chat_format.system_start or "") + chat_format.system_end
    added = (token for token in tokenizer.added_tokens_decoder.values() if not token.special)
    return [token.content for token in added if token.content.strip() and token.content in markup]
