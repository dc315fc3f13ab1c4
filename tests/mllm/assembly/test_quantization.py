"""Quantized loading: unquantized parts, refused devices, and, with a GPU, answers."""

import pytest
import torch
from torch import nn
from transformers.quantizers.quantizers_utils import should_convert_module

from dualtoken.mllm import DualTokenForConditionalGeneration, DualTokenPipeline, save_model
from dualtoken.mllm.assembly import quantization
from dualtoken.tokenizer import UserError

CUDA = torch.device("cuda")
LAYERS = "language_model.model.layers."


@pytest.fixture
def packages_there(monkeypatch):
    for name in ("is_bitsandbytes_available", "is_accelerate_available"):
        monkeypatch.setattr(quantization, name, lambda: True)


def quantized_layers(model) -> set[str]:
    return {
        name for name, module in model.named_modules() if type(module).__module__.startswith("bitsandbytes")
    }


def linear_layers(model) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.mark.parametrize(
    "llm", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"model_type": "gpt_neox"}]
)
def test_only_the_layers_of_the_llm_are_quantized(make_model, llm):
    model = make_model(llm)
    kept = quantization.unquantized_modules(model.config)
    converted = {name for name in linear_layers(model) if should_convert_module(name, kept)}
    inside = {
        name for name in linear_layers(model) if name.startswith("language_model.") and ".layers." in name
    }
    assert inside
    assert converted == inside


@pytest.mark.parametrize(("kind", "other"), [("8bit", "4bit"), ("4bit", "8bit")])
def test_settings_of_both_kinds(saved, kind, other):
    arguments = quantization.quantized_loading(kind, str(saved), CUDA, torch.bfloat16)
    assert arguments["device_map"] == {"": CUDA}
    settings = arguments["quantization_config"]
    assert getattr(settings, f"load_in_{kind}")
    assert not getattr(settings, f"load_in_{other}")
    assert settings.bnb_4bit_compute_dtype == torch.bfloat16
    assert settings.llm_int8_skip_modules == [
        "branches",
        "language_model.lm_head",
    ]


def test_without_quantization_nothing_is_asked_for():
    quantization.require_quantization("none", torch.device("cpu"))
    assert quantization.quantized_loading("none", "no/such-model", CUDA, torch.float32) == {}


def test_the_pipeline_hands_them_over_and_does_not_move_the_model(saved, monkeypatch, packages_there):
    given = {}

    def load(source, **kwargs):
        given.update(kwargs)
        return original(source, dtype=kwargs["dtype"])

    def moved(*_):
        raise AssertionError("a quantized model must stay where it was loaded")

    original = DualTokenForConditionalGeneration.from_pretrained
    monkeypatch.setattr(DualTokenForConditionalGeneration, "from_pretrained", load)
    monkeypatch.setattr(DualTokenForConditionalGeneration, "to", moved)
    monkeypatch.setattr("dualtoken.mllm.pipeline.resolve_device", lambda name: CUDA)
    DualTokenPipeline.from_pretrained(saved, quantization="4bit")
    assert given["quantization_config"].load_in_4bit
    assert given["device_map"] == {"": CUDA}
    assert given["dtype"] == torch.bfloat16


def test_what_is_missing_is_named(saved, monkeypatch, packages_there):
    with pytest.raises(UserError, match=r"3bit.*none, 8bit, 4bit"):
        DualTokenPipeline.from_pretrained(saved, quantization="3bit")
    with pytest.raises(UserError, match=r"needs a CUDA device.*cpu"):
        DualTokenPipeline.from_pretrained(saved, device="cpu", quantization="8bit")
    quantization.require_quantization("8bit", CUDA)
    monkeypatch.setattr(quantization, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match=r"needs bitsandbytes, .*pip install -U bitsandbytes"):
        quantization.require_quantization("8bit", CUDA)


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_quantized_model_answers_much_as_the_whole_one(make_model, processor, tmp_path, kind, device):
    pytest.importorskip("bitsandbytes", reason="is in the extra gpu")
    # Kernels want sizes in steps of 32.
    model, target = make_model({"hidden_size": 64}), torch.device(device)
    saved = tmp_path / "model"
    save_model(model, processor, saved)
    if device == "cuda":
        quantized = DualTokenPipeline.from_pretrained(saved, device=device, quantization=kind).model
    else:  # bitsandbytes has plain kernels for the CPU, which the pipeline does not offer
        arguments = quantization.quantized_loading(kind, str(saved), target, torch.float32)
        quantized = DualTokenForConditionalGeneration.from_pretrained(saved, dtype=torch.float32, **arguments)
    assert quantized.device.type == device
    assert quantized_layers(quantized) == {name for name in linear_layers(model) if name.startswith(LAYERS)}
    assert quantized.visual_tokenizer is not None
    assert quantized.visual_tokenizer.dtype == torch.float32
    assert not quantized_layers(quantized.visual_tokenizer)
    for name in ("pixel", "semantic"):
        vectors = quantized.branches[name].codebook.vectors
        assert torch.equal(vectors.cpu(), model.branches[name].codebook.vectors)
    prompt = processor.apply_chat_template([{"role": "user", "content": "a red circle"}])
    with torch.no_grad():
        expected = model(**prompt).logits
        inputs = {name: value.to(target) for name, value in prompt.items()}
        logits = quantized(**inputs).logits.float().cpu()
    error = (logits - expected).square().mean() / expected.square().mean()
    assert 0 < error < 0.1
    drawn = quantized.generate(**inputs, generation_mode="image", seed=0)
    assert drawn.shape == (1, model.config.codes_per_image)
    assert quantized.decode_image_tokens(drawn).isfinite().all()
