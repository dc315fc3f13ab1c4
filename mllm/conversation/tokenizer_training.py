"""A small text tokenizer: byte-fallback BPE, trained with sentencepiece."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from ...common.errors import UserError
from .special_tokens import SPECIAL_TOKENS
from .text_tokenizer import add_special_tokens

UNKNOWN = "<unk>"
NUM_BYTES = 256
SPACE = "▁"  # sentencepiece writes a space as this character


def train_text_tokenizer(
    texts: Iterable[str], vocab_size: int, folder: str | Path
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on `texts` and save it to `folder`, from which `AutoTokenizer` loads it.

    Text is not normalised and no space is put before it, so decoding inverts encoding exactly (except that
    the character U+2581 becomes a space). The vocabulary is `<unk>`, 256 bytes, the learned pieces and
    `SPECIAL_TOKENS`; it is smaller than `vocab_size` where the texts do not offer enough pieces.

    Raises:
        UserError: no text, or `vocab_size` too small for bytes and special tokens.
    """
    smallest = NUM_BYTES + 1 + len(SPECIAL_TOKENS)
    if vocab_size <= smallest:
        raise UserError(
            f"vocab_size is {vocab_size}; it must be above {smallest} (bytes, <unk> and special tokens)"
        )
    tokenizer = build_tokenizer(_train_pieces(texts, vocab_size - len(SPECIAL_TOKENS)))
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    """The tokenizer over sentencepiece BPE `pieces`, in id order (earlier pieces merge first)."""
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    # <unk> and the bytes are not text: merges must not spell them out of characters.
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
    """At most `num_pieces` pieces of a sentencepiece BPE, in id order."""
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
