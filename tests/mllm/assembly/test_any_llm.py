"""The unified model around language models of every family: built, trained, saved, loaded, used."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import pipeline as transformers_pipeline

from dualtoken.mllm import (
    DualTokenForConditionalGeneration,
    DualTokenPipeline,
    DualTokenProcessor,
    build_processor,
    drop_prompt,
    save_model,
)
from dualtoken.mllm.conversation.special_tokens import VISUAL_TOKENS
from dualtoken.mllm.conversation.text_tokenizer import encode_text
from dualtoken.mllm.generation.image_generation import unconditional_ids
from dualtoken.mllm.generation.text import never_in_text
from dualtoken.tokenizer import DualTokenizer, StoredTokenizer, UserError

from ..conversation.chat_templates import chat_tokenizer

SIZE = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
}
HEADS = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
# Further fields of the configuration, chat format, rows of the embeddings beyond the tokenizer.
LLMS = {
    "llama": ({"tie_word_embeddings": False}, "llama3", 0),
    "qwen2": ({"tie_word_embeddings": False}, "chatml", 40),
    "qwen3": ({"tie_word_embeddings": True}, "chatml_thinking", 2),
    "mistral": ({"tie_word_embeddings": False, "sliding_window": 6}, "mistral", 0),
    "gemma": ({"tie_word_embeddings": True}, "gemma", 40),
    "gemma2": ({"sliding_window": 6, "final_logit_softcapping": 5.0}, "gemma", 0),
    "gemma3_text": ({"sliding_window": 6}, "gemma", 3),
    "phi": ({"tie_word_embeddings": False}, "same_names", 0),  # its output head has a bias
}
every_llm = pytest.mark.parametrize("name", LLMS)


@pytest.fixture
def llm_folder(tmp_path, text_folder, name):
    """A random language model with its tokenizer, as downloaded."""
    settings, chat_format, padding = LLMS[name]
    tokenizer = chat_tokenizer(text_folder, chat_format)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    vocab_size = len(tokenizer) + padding
    config = AutoConfig.for_model(name, **{**SIZE, **ids, "vocab_size": vocab_size, **settings})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    model.save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


@pytest.fixture
def visual_folder(visual_tokenizer, tmp_path):
    visual_tokenizer.save_pretrained(tmp_path / "visual")
    return tmp_path / "visual"


@pytest.fixture
def built(llm_folder, visual_folder):
    model = DualTokenForConditionalGeneration.from_llm(llm_folder, visual_folder, depth_transformer=HEADS)
    return model.eval(), build_processor(visual_folder, llm_folder)


def batch_of(processor, records):
    return processor.collate([processor.encode_record(messages) for messages in records.values()])


def logits_of(model, batch):
    with torch.no_grad():
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


@every_llm
def test_the_language_model_is_kept_and_new_rows_are_the_mean(llm_folder, built, name):
    model, processor = built
    old, ids = AutoModelForCausalLM.from_pretrained(llm_folder), processor.tokenizer.get_vocab()
    known = AutoTokenizer.from_pretrained(llm_folder).get_vocab()
    new = sorted(index for token, index in ids.items() if token not in known)
    assert len(new) in (len(VISUAL_TOKENS), len(VISUAL_TOKENS) + 1)
    embedding = model.get_input_embeddings().weight
    rows, tokens = old.config.vocab_size, len(processor.tokenizer)
    assert len(embedding) == (rows if tokens <= rows else -(-tokens // 64) * 64)
    assert model.config.text_config.vocab_size == len(embedding)
    kept = [row for row in range(old.config.vocab_size) if row not in new]
    for ours, theirs in (
        (model.get_input_embeddings(), old.get_input_embeddings()),
        (model.get_output_embeddings(), old.get_output_embeddings()),
    ):
        for part in ("weight", "bias"):
            if getattr(theirs, part, None) is not None:
                before, after = getattr(theirs, part), getattr(ours, part)
                assert torch.equal(after[kept], before[kept])
                assert torch.equal(after[new], before.mean(dim=0).expand_as(after[new]))
    for key, value in old.state_dict().items():
        if "embed_tokens" not in key and "lm_head" not in key:
            assert torch.equal(model.language_model.state_dict()[key], value), key
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == old.config.tie_word_embeddings
    text = processor.apply_chat_template([{"role": "user", "content": "red"}])["input_ids"]
    kept = [row for row in kept if row < tokens]  # the others are never predicted
    assert torch.allclose(logits_of(model, {"input_ids": text})[..., kept], old(text).logits[..., kept])


@every_llm
def test_its_tokens_are_its_own(built, name):
    model, processor = built
    config, tokenizer = model.config, processor.tokenizer
    assert config.eos_token_id == tokenizer.convert_tokens_to_ids(processor.chat_format.end)
    assert (config.bos_token_id, config.pad_token_id) == (tokenizer.bos_token_id, tokenizer.pad_token_id)
    assert config.user_token_id is None
    assert config.assistant_token_id is None
    assert model.generation_config.eos_token_id == config.eos_token_id
    never = never_in_text(model.config)
    assert None not in never
    assert config.eos_token_id not in never
    assert processor.special_ids["<|image|>"] in never


@every_llm
def test_the_unconditional_branch_is_what_training_shows(built, records, name):
    model, processor = built
    trained = processor.encode_record(drop_prompt(records["text_to_image"])).input_ids
    expected = unconditional_ids(model.config).tolist()
    assert trained[: len(expected)].tolist() == expected
    assert expected.count(model.config.unconditional_token_id) == 1


@every_llm
def test_saved_and_loaded_it_is_the_same(built, records, tmp_path, name):
    model, processor = built
    batch = batch_of(processor, records)
    save_model(model, processor, tmp_path / "model")
    loaded = DualTokenForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    again = batch_of(DualTokenProcessor.from_pretrained(tmp_path / "model"), records)
    assert all(torch.equal(again[key], batch[key]) for key in batch)
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))
    assert torch.equal(unconditional_ids(loaded.config), unconditional_ids(model.config))
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    assert loaded.visual_tokenizer is not None


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_trained_saved_loaded_and_used(built, records, tmp_path, image, name):
    model, processor = built
    # One drawing of the same code everywhere: learned in a few steps.
    drawing = records["text_to_image"][1]["content"][0]
    for codes in ("pixel_codes", "semantic_codes"):
        drawing[codes] = drawing[codes] * 0 + 3
    data = {kind: records[kind] for kind in ("text_to_image", "question", "text")}
    batch = batch_of(processor, data)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    losses = []
    for _ in range(60):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    save_model(model, processor, tmp_path / "model")

    pipe = DualTokenPipeline.from_pretrained(tmp_path / "model", device="cpu")
    # transformers gives some families a decoder of their own, which this vocabulary was not made for.
    said = pipe.processor.tokenizer.decode(encode_text(pipe.processor.tokenizer, "a square"))
    parts = pipe.chat([{"role": "user", "content": "what is it"}], max_new_tokens=12)
    assert parts == [{"type": "text", "text": said}]
    assert pipe.answer(None, "what is it", max_new_tokens=12) == said
    assert pipe.answer(image, "how many", max_new_tokens=8)
    (drawn,) = pipe.generate_images("a red circle", seed=0, guidance_scale=1.5)
    assert drawn.size == (16, 16)
    prompt = processor.apply_chat_template([records["text_to_image"][0]], add_generation_prompt=True)
    tokens = pipe.model.generate(**prompt, generation_mode="image", temperature=0.0, guidance_scale=1.0)
    assert (tokens == 3).float().mean() > 0.9

    theirs = transformers_pipeline("any-to-any", model=str(tmp_path / "model"))
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is it"}]}]
    (answer,) = theirs(text=messages, max_new_tokens=12, generate_kwargs={"do_sample": False})
    assert answer["generated_text"][-1]["content"] == said


@pytest.mark.parametrize("name", ["qwen2"])
def test_codes_alone_need_no_vision_tower(llm_folder, visual_folder, records, monkeypatch, name):
    whole = DualTokenForConditionalGeneration.from_llm(llm_folder, visual_folder, depth_transformer=HEADS)
    # From here on a tower that is built is an error.
    monkeypatch.setattr(DualTokenizer, "__init__", None)
    model = DualTokenForConditionalGeneration.from_llm(
        llm_folder, visual_folder, load_visual_tokenizer=False, depth_transformer=HEADS
    )
    processor = build_processor(visual_folder, llm_folder)
    assert model.visual_tokenizer is None
    for branch in ("pixel", "semantic"):
        for buffer in ("vectors", "scale"):
            found, expected = (getattr(one.branches[branch].codebook, buffer) for one in (model, whole))
            assert torch.equal(found, expected)
    assert model(**batch_of(processor, records)).loss.isfinite()
    stored = StoredTokenizer.from_pretrained(visual_folder)
    assert (
        build_processor(stored, llm_folder).image_processor.to_dict() == processor.image_processor.to_dict()
    )


@pytest.mark.parametrize("name", ["mistral"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_attention_is_a_setting(llm_folder, visual_folder, tmp_path, implementation, name):
    model = DualTokenForConditionalGeneration.from_llm(
        llm_folder, visual_folder, attn_implementation=implementation, depth_transformer=HEADS
    )
    save_model(model, build_processor(visual_folder, llm_folder), tmp_path / "model")
    for built in (
        model,
        DualTokenForConditionalGeneration.from_pretrained(
            tmp_path / "model", attn_implementation=implementation
        ),
    ):
        layers = [one for one in built.language_model.modules() if type(one).__name__.endswith("Attention")]
        assert layers
        assert {layer.config._attn_implementation for layer in layers} == {implementation}


@pytest.mark.parametrize("name", ["mistral"])
def test_attention_mistakes_are_named(llm_folder, visual_folder, monkeypatch, name):
    for version in (2, 3):
        monkeypatch.setattr(
            f"dualtoken.common.loading.attention.is_flash_attn_{version}_available", lambda: False
        )
    allowed = "allowed: sdpa, eager, flash_attention_2, flash_attention_3, flex_attention"
    missing = [("flash_attention_2", "the package flash-attn "), ("flash_attention_3", "flash-attn-3")]
    for implementation, message in (("fast", allowed), *missing):
        with pytest.raises(UserError, match=message):
            DualTokenForConditionalGeneration.from_llm(
                llm_folder, visual_folder, attn_implementation=implementation
            )
        with pytest.raises(UserError, match=message):
            DualTokenForConditionalGeneration.from_pretrained(llm_folder, attn_implementation=implementation)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3_text"])
def test_projectors_are_initialised_to_the_rms_of_the_embeddings(built, records, name):
    model, _ = built
    codes = torch.randint(16, (1, 16, 3))
    with torch.no_grad():
        visual = model.embed_codes({"pixel": codes, "semantic": codes}, torch.arange(16)[None]).std()
        text = model.get_input_embeddings()(torch.arange(250)).std()
    assert 0.3 < float(visual / text) < 3


@pytest.mark.parametrize("name", ["llama"])
def test_mistakes_are_named(llm_folder, visual_folder, visual_tokenizer, tmp_path, name):
    build = DualTokenForConditionalGeneration.from_llm
    with pytest.raises(UserError, match="text_tokenizer is missing"):
        build({"model_type": "llama"}, visual_tokenizer)
    with pytest.raises(UserError, match="no tokenizer"):
        build(llm_folder, tmp_path / "nothing", load_visual_tokenizer=False)
    with pytest.raises(UserError, match="more than a language model"):
        build({"model_type": "gemma3"}, visual_tokenizer, llm_folder)
    with pytest.raises(UserError, match="more than a language model"):
        build({"model_type": "llava"}, visual_tokenizer, llm_folder)
    (visual_folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot load a tokenizer"):
        build(llm_folder, visual_folder, load_visual_tokenizer=False)


@pytest.mark.parametrize("name", ["qwen3"])
def test_the_model_card(built, tmp_path, name):
    save_model(*built, tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "any-to-any"
    assert "dualtoken" in card.data.tags
    assert card.data.license is None
    assert "import dualtoken.mllm" in card.text
    assert "qwen3, 2 layers of 48" in card.text
    assert str(tmp_path) not in card.content
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    assert "auto_map" not in settings
    assert str(tmp_path) not in json.dumps(settings)
