"""Low-rank adapters: trained parameters, merging, and refused settings."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from dualtoken.mllm import (
    DualTokenForConditionalGeneration,
    LoraSettings,
    add_lora,
    merge_adapters,
    save_model,
)
from dualtoken.mllm.conversation.rendering import SPECIAL_TOKENS
from dualtoken.tokenizer import UserError

TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
# An LLM whose output layer has a bias.
PHI = {"model_type": "phi", "tie_word_embeddings": False}
KINDS = [
    pytest.param(TIED, LoraSettings(rank=3, dropout=0.2), id="tied"),
    pytest.param(UNTIED, LoraSettings(rank=3), id="untied"),
    pytest.param(TIED, LoraSettings(rank=3, dora=True), id="dora"),
    pytest.param(UNTIED, LoraSettings(rank=3, target_modules=["q_proj", "mlp.up_proj"]), id="named"),
    pytest.param(PHI, LoraSettings(rank=3), id="biased-output"),
]


def batch_of(processor, records):
    return processor.collate([processor.encode_record(record) for record in records.values()])


def trained(model) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train_steps(model, batch, steps=3):
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.05)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def logits(model, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize(("llm", "settings"), KINDS)
def test_new_adapters_change_nothing(make_model, processor, records, llm, settings):
    model, batch = make_model(llm), batch_of(processor, records)
    plain = logits(model, batch)
    add_lora(model, settings)
    assert type(model) is DualTokenForConditionalGeneration
    torch.testing.assert_close(logits(model, batch), plain)


@pytest.mark.parametrize(("llm", "settings"), KINDS)
def test_every_trained_part_gets_a_gradient_and_moves_and_nothing_else_does(
    make_model, processor, records, llm, settings
):
    model, batch = make_model(llm, visual_position="learned"), batch_of(processor, records)
    add_lora(model, settings)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # From the second step on: the first one leaves A where it is, because B is zero.
    train_steps(model, batch)
    parts = trained(model)
    for name, parameter in parts.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) != (name in parts), name
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    shared = {
        name for name in moved if "token_adapter" in name
    }  # tied layers have a parameter under two names
    assert moved - shared == {name for name in parts if "token_adapter" not in name}
    assert {name for name, _ in model.branches.named_parameters(prefix="branches")} <= moved
    assert any("lora_A" in name for name in moved)


def test_new_parameters_are_few(make_model):
    model = make_model(TIED)
    add_lora(model, LoraSettings(rank=2))
    named = trained(model.language_model)
    assert all("lora_" in name or "trainable_tokens" in name for name in named)
    (rows,) = [p for name, p in named.items() if "trainable_tokens" in name]
    assert rows.shape == (len(SPECIAL_TOKENS), 48)
    assert not any("lm_head" in name or "embed" in name for name in named if "lora_" in name)


@pytest.mark.parametrize(("llm", "settings"), KINDS)
def test_a_merged_model_gives_the_same_and_is_saved_as_a_plain_one(
    make_model, processor, records, tmp_path, llm, settings
):
    model, batch = make_model(llm), batch_of(processor, records)
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    add_lora(model, settings)
    train_steps(model, batch)
    prompt = processor.apply_chat_template([{"role": "user", "content": "a red circle"}])
    adapted = logits(model, batch)
    drawing = model.generate(**prompt, generation_mode="image", do_sample=False)
    answer = model.generate(**prompt, do_sample=False, max_new_tokens=8)

    assert merge_adapters(model) is model
    torch.testing.assert_close(logits(model, batch), adapted, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(**prompt, generation_mode="image", do_sample=False), drawing)
    assert torch.equal(model.generate(**prompt, do_sample=False, max_new_tokens=8), answer)
    assert model.state_dict().keys() == plain.keys()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied

    save_model(model, processor, tmp_path / "model")
    written = load_file(tmp_path / "model" / "model.safetensors")
    assert not any("lora" in name or "adapter" in name or "base_layer" in name for name in written)
    loaded = DualTokenForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded, batch), logits(model, batch))


@pytest.mark.parametrize("llm", [TIED, UNTIED], ids=["tied", "untied"])
def test_only_special_tokens_learn_new_embeddings(make_model, processor, records, llm):
    model = make_model(llm)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    before = [layer.weight.clone() for layer in layers]
    add_lora(model)
    merge_adapters(train_steps(model, batch_of(processor, records)))
    special = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    for layer, old in zip(layers, before, strict=True):
        moved = (layer.weight != old).any(dim=1).nonzero().flatten()
        assert len(moved)
        assert torch.isin(moved, special).all()


def test_state_dicts_restore_adapters(make_model, processor, records):
    model, other, batch = make_model(TIED), make_model(TIED), batch_of(processor, records)
    for one in (model, other):
        add_lora(one, LoraSettings(rank=2, dora=True))
    train_steps(model, batch)
    assert not torch.allclose(logits(other, batch), logits(model, batch), atol=1e-3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, batch), logits(model, batch))


def test_a_model_with_adapters_is_not_saved(model, processor, tmp_path):
    add_lora(model)
    with pytest.raises(UserError, match="merge_adapters"):
        save_model(model, processor, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(UserError, match="adapters already"):
        add_lora(model)
    merge_adapters(model)
    assert merge_adapters(model) is model
    save_model(model, processor, tmp_path / "model")


def test_layers_that_are_not_there_are_named(model):
    for targets in (["q_proj", "querry"], ["mlp"], ["embed_tokens"], ["lm_head"]):
        with pytest.raises(UserError, match=rf"{targets[-1]}.*gate_proj"):
            add_lora(model, LoraSettings(target_modules=targets))
    assert len(trained(model)) == len(list(model.parameters()))  # left as it was


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rank": 0}, "^rank is 0; give an integer from 1"),
        ({"alpha": 0}, "^alpha is 0"),
        ({"dropout": 1.0}, "^dropout is 1.0"),
        ({"target_modules": []}, r"^target_modules is \[\]"),
        ({"target_modules": "q_proj"}, "all-linear"),
    ],
)
def test_settings_out_of_range_are_named(settings, named):
    with pytest.raises(UserError, match=named):
        LoraSettings(**settings)


def test_what_peft_cannot_do_is_told_in_its_words(make_model):
    experts = {"model_type": "mixtral", "num_local_experts": 2, "num_key_value_heads": 4}
    with pytest.raises(UserError, match="peft refuses"):
        add_lora(make_model(experts), LoraSettings(dora=True))


def test_a_missing_package_is_named_with_its_extra(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"package peft .*pip install"):
        add_lora(model)


def test_quantized_language_models_take_no_adapters(model):
    model.is_quantized = True
    with pytest.raises(UserError, match="quantiz"):
        add_lora(model)
