"""Text tokenizers with DualToken's special tokens, and rendered conversations as ids."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .chat_format import OWN, ChatFormat
from .chat_template import OWN_TEMPLATE
from .rendering import Segment
from .special_tokens import BOS, END, IMAGE, PAD, SPECIAL_TOKENS, VISUAL_TOKENS, special_strings


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat = OWN) -> int:
    """Add DualToken's special tokens to any tokenizer, in place; returns the number of new ones.

    With an LLM's chat format only the visual tokens are added, and a pad token where there is none. With
    DualToken's format all are added and become bos, pad and eos, and its chat template replaces the
    tokenizer's, which would be wrong.
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
    """Ids of a rendered conversation, in pieces, each with a segment whose `is_target` holds for all its ids.

    A chat template's strings and the text between them are encoded together, so that the ids are those that
    the language model was trained on. `special` is the tokenizer's `special_pattern`.
    """
    # Text and markup are encoded together, targets apart from the rest.
    kinds = groupby(segments, lambda one: (one.text is not None or one.markup is not None, one.is_target))
    for (is_written, _), run in kinds:
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
    """`tokenizer.encode` without added special tokens; by the backend, which takes a quarter of the time."""
    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or not (
        kind.encode is PreTrainedTokenizerFast.encode
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    ):
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split_special_tokens)
    backend = tokenizer.backend_tokenizer
    # Settings of earlier calls, or of the tokenizer's file; `encode` resets them too.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    backend.encode_special_tokens = split_special_tokens
    return backend.encode(text, add_special_tokens=False).ids


def _piece_ids(tokenizer: PreTrainedTokenizerBase, segment: Segment, num_positions: int) -> list[int]:
    if segment.text is not None:
        return encode_text(tokenizer, segment.text)
    if segment.markup is not None:
        return encode_markup(tokenizer, segment.markup)
    token: Any = tokenizer.convert_tokens_to_ids(segment.special or IMAGE)
    return [token] * (num_positions if segment.special is None else 1)


def _turn_tokens(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> list[str]:
    """Tokens of the format that are not special in the tokenizer: a user's text could contain them."""
    markup = "".join(value for value in vars(chat_format).values() if isinstance(value, str))
    added = (token for token in tokenizer.added_tokens_decoder.values() if not token.special)
    return [token.content for token in added if token.content.strip() and token.content in markup]
