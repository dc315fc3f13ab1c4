"""The trained text tokenizer: exact round trips, sentencepiece's own ids, inert special tokens."""

import pytest
import sentencepiece

from dualtoken.mllm import text_tokenizer as module
from dualtoken.mllm import train_text_tokenizer
from dualtoken.mllm.conversation import SPECIAL_TOKENS
from dualtoken.mllm.text_tokenizer import encode_text
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
