"""Every attention implementation: packed documents equal separate ones, padding changes nothing."""

import pytest
import torch
from torch.nn.attention import flex_attention as flex
from transformers import masking_utils
from transformers.integrations import flex_attention as integration

from dualtoken.common.errors import UserError
from dualtoken.common.loading.attention import check_attention
from dualtoken.common.loading.bounded_settings import ATTENTION
from dualtoken.mllm.gpu_proof import prove_packed_attention

SHORT, LONG = "red", "how many blue square above the green circle left of it"


@pytest.fixture
def plain_flex(monkeypatch):
    """flex attention operator by operator: compiling it for a CPU takes a minute."""

    def uncompiled(query, key, value, training=False, **options):
        return flex.flex_attention(query, key, value, **options)

    def block_mask(*args, _compile=False, **options):
        return flex.create_block_mask(*args, **options)

    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", uncompiled)
    monkeypatch.setattr(masking_utils, "create_block_mask", block_mask)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_documents_equal_separate_ones(implementation):
    prove_packed_attention(implementation, "cpu", torch.float32)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_packed_documents_equal_separate_ones_with_flex_attention(plain_flex):
    prove_packed_attention("flex_attention", "cpu", torch.float32, training=False)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "llm",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"model_type": "gemma2", "head_dim": 16, "sliding_window": 6},
    ],
    ids=["llama", "gemma2"],
)
def test_flex_attention_generates_what_sdpa_does(make_model, processor, plain_flex, llm):
    model = make_model({"num_key_value_heads": 2, **llm})
    turns = [[{"role": "user", "content": text}] for text in (LONG, SHORT)]
    inputs = processor.apply_chat_template(turns, add_generation_prompt=True)
    found = []
    for implementation in ("eager", "flex_attention"):
        model.set_attn_implementation(implementation)
        text = model.generate(**inputs, generation_mode="text", max_new_tokens=4, do_sample=False)
        images = model.generate(**inputs, generation_mode="image", seed=5, guidance_scale=2.0)
        found.append((text.tolist(), images.tolist()))
    assert found[0] == found[1]


@pytest.mark.gpu
@pytest.mark.parametrize("implementation", ATTENTION)
def test_packed_documents_equal_separate_ones_on_a_gpu(implementation):
    try:
        check_attention(implementation)
    except UserError as error:
        pytest.skip(str(error))
    prove_packed_attention(implementation, "cuda", torch.bfloat16)


def test_flex_attention_does_not_train_on_a_cpu(monkeypatch):
    check_attention("flex_attention")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"run\.attention 'flex_attention' trains on GPUs only"):
        check_attention("flex_attention", "run.attention", training=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_attention("flex_attention", "run.attention", training=True)
