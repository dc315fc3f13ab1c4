"""Compiled image generation equals the plain loop, in one graph per step and without a second compilation."""

import pytest
import torch
from torch._dynamo.utils import counters

from dualtoken.tokenizer import UserError

SHORT, LONG = "red", "how many blue square above the green circle left of it"


def images_of(model, processor, *texts, **options):
    conversations = [[{"role": "user", "content": text}] for text in texts]
    inputs = processor.apply_chat_template(conversations, add_generation_prompt=True)
    return model.generate(**inputs, generation_mode="image", seed=5, **options)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize(
    ("llm", "settings"),
    [
        ({}, {"semantic_condition": "pixel"}),
        ({"model_type": "qwen2"}, {"pixel_condition": "semantic", "shared_classifier": False}),
        ({"model_type": "mistral", "sliding_window": 6}, {"visual_position": "learned"}),
        ({"model_type": "gemma2", "head_dim": 12, "sliding_window": 6, "attn_implementation": "eager"}, {}),
    ],
    ids=["llama", "qwen2", "mistral", "gemma2"],
)
def test_compiled_equals_eager(make_model, processor, llm, settings):
    """Traced and run with fixed shapes; the code generator is torch's."""
    model = make_model({"num_key_value_heads": 2, **llm}, **settings)
    for texts in ((LONG, SHORT), (SHORT, SHORT)):
        options = {"guidance_scale": 2.0, "guidance_schedule": "cosine", "top_p": 0.95}
        plain = images_of(model, processor, *texts, **options)
        assert torch.equal(images_of(model, processor, *texts, **options, compile="eager"), plain)
    assert not counters["graph_break"]
    # One graph for each of the two steps, kept for the second batch.
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_compiled_code_equals_eager(make_model, processor):
    model = make_model(semantic_condition="pixel")
    plain = images_of(model, processor, LONG, SHORT, guidance_scale=2.0)
    assert torch.equal(images_of(model, processor, LONG, SHORT, guidance_scale=2.0, compile=True), plain)


def test_other_attention_is_refused(model, processor, monkeypatch):
    monkeypatch.setattr(model.language_model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(UserError, match="sdpa or eager"):
        images_of(model, processor, SHORT, compile=True)
