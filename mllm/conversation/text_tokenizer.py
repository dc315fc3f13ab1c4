"""Text tokenizers: their special tokens, conversations as ids, and a small one trained with sentencepiece."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import AddedToken, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from ...common.errors import UserError
from .chat_format import OWN, ChatFormat
from .chat_template import OWN_TEMPLATE
from .rendering import Segment
from .special_tokens import BOS, END, IMAGE, PAD, SPECIAL_TOKENS, VISUAL_TOKENS, special_strings

UNKNOWN = "<unk>"
NUM_BYTES = 256
SPACE = "▁"  # sentencepiece writes a space as this character


def train_text_tokenizer(
    texts: Iterable[str], vocab_size: int, folder: str | Path
) -> PreTrainedTokenizerFast:
    """Train a byte-fallback BPE on `texts` and save it to `folder`; `AutoTokenizer.from_pretrained(folder)`
    loads it.

    Text is never normalised and no space is put before it, so decoding gives back exactly what was encoded
    (but for the character U+2581, which stands for a space). The vocabulary holds `<unk>`, 256 bytes, the
    learned pieces and, last, `SPECIAL_TOKENS`; it is smaller than `vocab_size` where the texts do not offer
    enough pieces.

    Raises:
        UserError: no text, or `vocab_size` too small for bytes and special tokens.
    """
    smallest = NUM_BYTES + 1 + len(SPECIAL_TOKENS)
    if vocab_size <= smallest:
        raise UserError(
            f"vocab_size is {vocab_size}; it must be above {smallest} (bytes, <unk> and special tokens)"
        )
    pieces = _train_pieces(texts, vocab_size - len(SPECIAL_TOKENS))
    tokenizer = build_tokenizer(pieces)
    tokenizer.save_pretrained(folder)
    return tokenizer


def add_special_tokens(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat = OWN) -> int:
    """Add DualToken's special tokens to any tokenizer (an LLM's own); returns how many were new.

    With a format of its own the tokenizer keeps its bos, pad and eos and gets the visual tokens only, and a
    pad token where it has none. With DualToken's format all are added and take those places; a chat template
    of the tokenizer, which would then be wrong, is replaced by DualToken's own.
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

    A record has many short texts, of which the backend takes a quarter of the time that `encode` does.
    """
    kind = type(tokenizer)
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or not (
        kind.encode is PreTrainedTokenizerFast.encode
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
    ):
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split_special_tokens)
    backend = tokenizer.backend_tokenizer
    # Settings of the backend that earlier calls, or its file, have left behind; `encode` does the same.
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


def build_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer over sentencepiece BPE `pieces`, in id order (earlier pieces merge first)."""
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    # <unk> and the bytes are no text: merges must not spell them out of characters.
    mergeable = {piece: index for piece, index in vocabulary.items() if index > NUM_BYTES}
    model = BPE(vocabulary, generate_merges(mergeable), unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=UNKNOWN, clean_up_tokenization_spaces=False, padding_side="left"
    )
    add_special_tokens(tokenizer)
    return tokenizer


def _train_pieces(texts: Iterable[str], num_pieces: int) -> list[str]:
    """Pieces of a sentencepiece BPE in id order; fewer than asked for where the texts are too few."""
    sentences = [text for text in texts if text]
    if not sentences:
        raise UserError("no text to train the text tokenizer on")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="bpe",
        vocab_size=num_pieces,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [processor.id_to_piece(index) for index in range(processor.get_piece_size())]
