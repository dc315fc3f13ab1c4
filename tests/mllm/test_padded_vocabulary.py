"""Rows of the embedding and the output layer that no token has: room for fast products, never predicted."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dualtoken.common.errors import UserError
from dualtoken.mllm import DualTokenConfig, DualTokenForConditionalGeneration, DualTokenPipeline
from dualtoken.mllm.linear_cross_entropy import Classifier, linear_cross_entropy
from dualtoken.mllm.losses import cross_entropy, text_losses
from dualtoken.tokenizer import StoredTokenizer

LLM = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SMALL = {"depth_transformer": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}}


@pytest.fixture(scope="module")
def visual() -> StoredTokenizer:
    return StoredTokenizer.from_pretrained("nano")


@pytest.fixture(scope="module")
def text_tokenizer():
    tokenizer = DualTokenPipeline.from_pretrained("nano", device="cpu").processor.tokenizer
    tokenizer.add_tokens([f"<new{number}>" for number in range(3)])
    return tokenizer


def build(visual, text_tokenizer, llm=LLM, **options):
    return DualTokenForConditionalGeneration.from_llm(
        llm, visual, text_tokenizer, load_visual_tokenizer=False, **SMALL, **options
    )


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_model_has_a_multiple_of_64_rows_and_records_its_tokens(visual, text_tokenizer, tied):
    tokens = max(text_tokenizer.get_vocab().values()) + 1
    assert tokens % 64
    model = build(visual, text_tokenizer, LLM | {"tie_word_embeddings": tied})
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert len(layer.weight) == -(-tokens // 64) * 64
    assert (model.config.text_config.vocab_size, model.config.num_text_tokens) == (len(layer.weight), tokens)
    saved = DualTokenConfig.from_dict(model.config.to_dict())
    assert (saved.text_vocab_size, saved.text_config.vocab_size) == (tokens, len(layer.weight))
    assert build(visual, text_tokenizer, vocabulary_multiple=1).config.text_config.vocab_size == tokens


@pytest.mark.parametrize(("rows", "expected"), [(2000, 2112), (2051, 2051), (2200, 2200)])
def test_a_trained_llm_grows_to_a_multiple_and_is_never_shrunk(visual, text_tokenizer, rows, expected):
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLM, vocab_size=rows))
    model = build(visual, text_tokenizer, llm)
    assert len(model.get_input_embeddings().weight) == expected
    assert model.config.num_text_tokens == 2051


def test_padded_ids_are_never_predicted(visual, text_tokenizer):
    model = build(visual, text_tokenizer).eval()
    tokens, image = model.config.num_text_tokens, model.config.image_token_id
    with torch.no_grad():  # a padded row that would win every time
        model.get_output_embeddings().weight[tokens:] = 100.0
        model.get_output_embeddings().weight[tokens + 1 :] = -100.0
    ids = torch.randint(0, tokens, (2, 7))
    ids[ids == image] = 0
    output = model(input_ids=ids)
    assert torch.isneginf(output.logits[..., tokens:]).all()
    assert output.logits[..., :tokens].isfinite().all()
    for options in ({"do_sample": True}, {"num_beams": 2}, {}):
        words = model.generate(ids, generation_mode="text", max_new_tokens=4, min_new_tokens=4, **options)
        assert words.max() < tokens
    # The loss of a model is that of one without the rows.
    one = build(visual, text_tokenizer, vocabulary_multiple=1)
    state = model.state_dict()
    one.load_state_dict(
        {
            key: value[: one.state_dict()[key].shape[0]] if value.dim() else value
            for key, value in state.items()
        }
    )
    losses = [each(input_ids=ids, labels=ids).text_loss for each in (model, one.eval())]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk_rows", [3, None])
def test_value_and_gradients_are_those_without_the_rows(softcap, chunk_rows):
    states = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(20, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 13, (8,))
    padded, _ = linear_cross_entropy(
        states, weight, targets, bias=bias, softcap=softcap, num_classes=13, chunk_rows=chunk_rows
    )
    plain, _ = linear_cross_entropy(states, weight[:13], targets, bias=bias[:13], softcap=softcap)
    torch.testing.assert_close(padded, plain)
    of_padded, of_plain = (torch.autograd.grad(one, (states, weight, bias)) for one in (padded, plain))
    for a, b in zip(of_padded, of_plain, strict=True):
        torch.testing.assert_close(a, b)


def test_every_kind_of_head_leaves_the_rows_out(monkeypatch):
    head = Classifier(6, 20)
    states, targets = torch.randn(8, 6), torch.randint(0, 13, (8,))
    expected, _ = text_losses(head, states, targets, None, 13)
    hooked = Classifier(6, 20)
    hooked.load_state_dict(head.state_dict())
    hooked.register_forward_pre_hook(lambda *_: None)  # device maps, adapters
    torch.testing.assert_close(cross_entropy(hooked, states, targets, num_classes=13)[0], expected)
    hooked.weight.ds_id = 0  # ZeRO-3 gathers the weight in the module's forward
    torch.testing.assert_close(cross_entropy(hooked, states, targets, num_classes=13)[0], expected)
    assert expected < text_losses(head, states, targets, None, 20)[0]


def test_a_fused_loss_that_knows_of_no_padding_sees_the_tokens_alone(monkeypatch):
    seen = []

    def fused(states, weight, bias, targets, softcap):
        seen.append((len(weight), len(bias)))
        return linear_cross_entropy(states, weight, targets, bias=bias, softcap=softcap)[0]

    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr("dualtoken.mllm.losses.liger_cross_entropy", lambda device: fused)
    head, targets = Classifier(6, 20), torch.randint(0, 13, (8,))
    states = torch.randn(8, 6).requires_grad_().as_subclass(OnGpu)
    loss, _ = text_losses(head, states, targets, None, 13)
    assert seen == [(13, 13)]
    (gradient,) = torch.autograd.grad(loss, head.weight)
    assert gradient[:13].any(dim=1).all()
    assert not gradient[13:].any()


def test_the_recorded_number_of_tokens_fits_the_rows(visual, text_tokenizer):
    fields = build(visual, text_tokenizer).config.to_dict()
    for wrong in (0, fields["text_config"]["vocab_size"] + 1, "many", 5):
        with pytest.raises(UserError, match=r"text_vocab_size|token_id"):
            DualTokenConfig.from_dict(fields | {"text_vocab_size": wrong})


def test_models_from_before_have_a_token_for_every_row():
    config = DualTokenConfig.from_pretrained("nano")
    assert config.text_vocab_size is None
    assert config.num_text_tokens == config.text_config.vocab_size
