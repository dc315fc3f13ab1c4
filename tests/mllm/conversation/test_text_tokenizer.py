"""The trained text tokenizer: exact round trips, sentencepiece's own ids, inert special tokens."""

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dualtoken.mllm import train_text_tokenizer
from dualtoken.mllm.conversation import tokenizer_training as module
from dualtoken.mllm.conversation.rendering import SPECIAL_TOKENS
from dualtoken.mllm.conversation.text_tokenizer import add_special_tokens, encode_markup, encode_text
from dualtoken.tokenizer import UserError

SAMPLES = [
    "Two.",
    "a red circle",
    "  two  leading spaces",
    "tab\tand\nnew line ",
    "émoji 🙂 and 汉字",
    "<|image|> <|end|> <unk> <0x41>",
    "redgreen",
]


@pytest.mark.parametrize("text", SAMPLES)
def test_round_trip_is_exact(text_tokenizer, text):
    assert text_tokenizer.decode(encode_text(text_tokenizer, text)) == text


def test_special_tokens_never_come_from_text(text_tokenizer):
    special = set(text_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    for token in SPECIAL_TOKENS:
        assert not special & set(encode_text(text_tokenizer, f"x {token} y{token}"))
    assert len(special) == len(SPECIAL_TOKENS)


def test_ids_equal_sentencepiece(tmp_path, monkeypatch):
    models = []
    original = sentencepiece.SentencePieceProcessor

    def remember(model_proto: bytes) -> sentencepiece.SentencePieceProcessor:
        models.append(model_proto)
        return original(model_proto=model_proto)

    monkeypatch.setattr(module.sentencepiece, "SentencePieceProcessor", remember)
    texts = [f"the {colour} {shape} is {place} it" for colour in ("red", "blue", "green") for shape in
             ("circle", "square", "star") for place in ("above", "below", "left of")]  # fmt: skip
    tokenizer = train_text_tokenizer(texts, 330, tmp_path)
    reference = original(model_proto=models[0])
    for text in SAMPLES + texts:
        assert encode_text(tokenizer, text) == reference.encode(text)


def test_too_small_vocabulary_and_no_text(tmp_path):
    with pytest.raises(UserError, match="vocab_size"):
        train_text_tokenizer(["a"], 100, tmp_path)
    with pytest.raises(UserError, match="no text"):
        train_text_tokenizer([], 400, tmp_path)


def test_few_texts_make_a_smaller_vocabulary(tmp_path):
    assert len(train_text_tokenizer(["red circle"], 5000, tmp_path)) < 400


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SAMPLES, trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As Llama 2 and Gemma: a space is put before the text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLES, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """As BERT: lower case, words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(SAMPLES, trainer)
    return tokenizer


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """With a token that it adds by itself, and with settings that its file has left in it."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    add_special_tokens(tokenizer)
    backend = tokenizer.backend_tokenizer
    bos = tokenizer.bos_token
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.convert_tokens_to_ids(bos))]
    )
    backend.enable_truncation(3)
    backend.enable_padding(length=7)
    return tokenizer


def without_a_backend() -> PreTrainedTokenizerBase:
    tokenizer = ByT5Tokenizer()
    add_special_tokens(tokenizer)
    return tokenizer


class OwnEncode(PreTrainedTokenizerFast):
    """A tokenizer that does more than its backend."""

    def encode(self, text, **settings):
        return [*super().encode(text, **settings), 7]


KINDS = {
    "byte level": lambda: fast(byte_level()),
    "metaspace": lambda: fast(metaspace()),
    "words": lambda: fast(word_piece()),
    "without a backend": without_a_backend,
    "own encode": lambda: OwnEncode(tokenizer_object=byte_level()),
}
HARD = [
    "",
    " ",
    " red",
    "red ",
    "\n\n a",
    "<|end|>",
    "a<|image|>b <|end|>",
    "<s>",
    "é\u0301 ﬁ ½",
    "\u2028x",
    "🙂" * 9,
]


@pytest.mark.parametrize("kind", ["own", *KINDS])
def test_ids_are_those_of_the_tokenizer_itself(text_tokenizer, kind):
    tokenizer = text_tokenizer if kind == "own" else KINDS[kind]()
    for text in SAMPLES + HARD + ["x".join(SAMPLES) * 20]:
        as_text, as_markup = encode_text(tokenizer, text), encode_markup(tokenizer, text)
        assert as_text == tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert as_markup == tokenizer.encode(text, add_special_tokens=False)
        assert as_text == encode_text(tokenizer, text)


def test_a_tokenizer_that_splits_special_tokens_does_so_in_markup(text_tokenizer):
    parsed = encode_markup(text_tokenizer, "<|end|>")
    text_tokenizer.split_special_tokens = True
    assert len(parsed) == 1
    assert encode_markup(text_tokenizer, "<|end|>") == text_tokenizer.encode(
        "<|end|>", add_special_tokens=False
    )
    assert len(encode_markup(text_tokenizer, "<|end|>")) > 1
