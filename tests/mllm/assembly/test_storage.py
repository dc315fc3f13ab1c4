"""One folder, one call: save and load, in every dtype, strictly."""

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from dualtoken.mllm import DualTokenForConditionalGeneration, DualTokenProcessor, build_model, save_model
from dualtoken.tokenizer import UserError


def batch_of(processor, records):
    kinds = ("text_to_image", "question", "text", "interleaved")
    return processor.collate([processor.encode_record(records[kind]) for kind in kinds])


def test_a_loaded_model_is_the_saved_one(saved, model, processor, records):
    batch = batch_of(processor, records)
    loaded, loaded_processor = (
        AutoModelForMultimodalLM.from_pretrained(saved),
        AutoProcessor.from_pretrained(saved),
    )
    assert isinstance(loaded, DualTokenForConditionalGeneration)
    assert isinstance(loaded_processor, DualTokenProcessor)
    assert AutoConfig.from_pretrained(saved).depth_transformer == model.config.depth_transformer
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    again = batch_of(loaded_processor, records)
    assert all(torch.equal(again[key], batch[key]) for key in batch)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    head = loaded.language_model
    assert head.lm_head.weight is head.model.embed_tokens.weight


@pytest.mark.parametrize("branches", ["pixel", "semantic"])
def test_a_model_of_one_branch_is_saved_and_loaded(make_model, processor, records, tmp_path, branches):
    model = make_model(visual_branches=branches)
    save_model(model, processor, tmp_path)
    loaded = DualTokenForConditionalGeneration.from_pretrained(tmp_path)
    batch = batch_of(processor, records)
    assert torch.equal(loaded(**batch).loss, model(**batch).loss)
    assert f"depth transformer ({branches} codes)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("variant", ["shared_quantizer", "separate_encoders"])
def test_a_model_takes_the_codebooks_of_a_tokenizer_of_an_ablation(
    tiny_tokenizer, text_folder, tmp_path, variant
):
    quantizer = {"num_codes": 24, "code_dim": 8, "depth": 3}
    layers = {"pixel_layer": 2} if variant == "shared_quantizer" else {}
    settings = {"pixel_quantizer": quantizer, "semantic_quantizer": quantizer, **layers, variant: True}
    tokenizer = tiny_tokenizer(**settings)
    tokenizer.save_pretrained(tmp_path)
    llm = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = build_model(llm, tmp_path, text_folder, load_visual_tokenizer=False)
    for name in ("pixel", "semantic"):
        stored = getattr(tokenizer, f"{name}_quantizer").codebook_tensor()
        assert torch.equal(model.branches[name].codebook.vectors, stored)


@pytest.mark.parametrize("saved_as", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loaded_as", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_codebooks_are_the_tokenizers_in_any_dtype(
    model, processor, visual_tokenizer, tmp_path, saved_as, loaded_as, with_tokenizer
):
    save_model(model.to(saved_as), processor, tmp_path / "model")
    loaded = DualTokenForConditionalGeneration.from_pretrained(
        tmp_path / "model",
        load_visual_tokenizer=with_tokenizer,
        **({"dtype": loaded_as} if loaded_as else {}),
    )
    assert loaded.dtype == (loaded_as or saved_as)
    assert (loaded.visual_tokenizer is not None) == with_tokenizer
    for name in ("pixel", "semantic"):
        expected = getattr(visual_tokenizer, f"{name}_quantizer").codebook_tensor()
        vectors = loaded.branches[name].codebook.vectors
        assert vectors.dtype == torch.float32
        assert torch.equal(vectors, expected)
    if with_tokenizer:
        assert loaded.visual_tokenizer.dtype == torch.float32
        assert not loaded.visual_tokenizer.training
        assert not any(parameter.requires_grad for parameter in loaded.visual_tokenizer.parameters())


def test_the_visual_tokenizer_is_no_part_of_the_model(model):
    assert not any("visual_tokenizer" in name for name, _ in model.named_parameters())
    model.train()
    assert not model.visual_tokenizer.training


def test_without_the_visual_tokenizer_images_are_refused(saved, processor, image, records):
    model = DualTokenForConditionalGeneration.from_pretrained(saved, load_visual_tokenizer=False)
    assert model(**batch_of(processor, records)).loss.isfinite()
    inputs = processor.apply_chat_template([{"role": "user", "content": [{"type": "image", "image": image}]}])
    with pytest.raises(UserError, match="visual tokenizer"):
        model(**inputs)


def test_weights_are_readable_for_all(saved):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in saved.glob("*.safetensors")}
    umask = os.umask(0)
    os.umask(umask)
    assert modes == {0o666 & ~umask}


def test_missing_and_unexpected_weights_are_refused(saved):
    weights = load_file(saved / "model.safetensors")
    name = "branches.pixel.depth_transformer.norm.weight"
    first = weights.pop(name)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"lacks 1 parameters \({name}\)"):
        DualTokenForConditionalGeneration.from_pretrained(saved)
    weights |= {name: first, "stray.weight": first.clone()}
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="unknown 1 parameters"):
        DualTokenForConditionalGeneration.from_pretrained(saved)


def test_broken_weights_are_refused(saved):
    (saved / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot load"):
        DualTokenForConditionalGeneration.from_pretrained(saved)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a DualToken model"):
        DualTokenForConditionalGeneration.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="not a DualToken model"):
        DualTokenForConditionalGeneration.from_pretrained(tmp_path)


def test_a_trained_llm_keeps_its_weights(visual_tokenizer, text_tokenizer, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
        )
    )
    llm.save_pretrained(tmp_path)
    model = build_model(tmp_path, visual_tokenizer, text_tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(text_tokenizer)
    kept, name = model.language_model.state_dict(), "model.embed_tokens.weight"
    assert torch.equal(kept[name][:100], llm.state_dict()[name])
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(kept[name], llm.state_dict()[name])


def test_assembly_mistakes_are_named(visual_tokenizer, text_tokenizer, tmp_path):
    with pytest.raises(UserError, match="model_type"):
        build_model({}, visual_tokenizer, text_tokenizer)
    with pytest.raises(UserError, match="unknown model setting"):
        build_model({"model_type": "llama"}, visual_tokenizer, text_tokenizer, colour="red")
    with pytest.raises(UserError, match="no causal language model"):
        build_model(tmp_path, visual_tokenizer, text_tokenizer)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"no text tokenizer.*no usable tokenizer\.json"):
        build_model({"model_type": "llama"}, visual_tokenizer, tmp_path)
    for given in (None, text_tokenizer):
        with pytest.raises(UserError, match="folder does not exist"):
            build_model(tmp_path / "absent", visual_tokenizer, given)
