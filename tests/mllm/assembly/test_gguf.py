"""Language models in llama.cpp's format: the same model as from a folder, trainable, saved and loaded."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.text.general_questions import GENERAL_QUESTIONS, MAX_NEW_TOKENS
from dualtoken.mllm import (
    DualTokenForConditionalGeneration,
    DualTokenPipeline,
    build_processor,
    save_model,
)
from dualtoken.mllm.assembly import gguf as reader
from dualtoken.mllm.assembly.tokenizers import load_text_tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

HEADS = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "intermediate_size": 48}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["r e", "re d", "1 2"]
TOKENS = [*SPECIAL, *bytes_to_unicode().values(), "re", "red", "12"]


@pytest.fixture
def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval()


def write(model: LlamaForCausalLM, path: Path, quantized: bool = False, kind: str = "llama") -> Path:
    """`model` as llama.cpp writes it: rows of queries and keys in its order of rotated pairs."""
    config, writer = model.config, gguf.GGUFWriter(path, kind)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(MERGES)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if part in name:
                value = value.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        array, target = value.numpy(), names.get_name(name, try_suffixes=(".weight",))
        if quantized and value.ndim == 2 and value.shape[1] % 32 == 0:
            kinds = gguf.GGMLQuantizationType
            packed = gguf.quantize(array, kinds.Q8_0)
            writer.add_tensor(target, packed, raw_dtype=kinds.Q8_0)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def visual_folder(visual_tokenizer, tmp_path) -> Path:
    visual_tokenizer.save_pretrained(tmp_path / "visual")
    return tmp_path / "visual"


@pytest.mark.parametrize("quantized", [False, True])
def test_a_gguf_file_is_the_model_that_was_written(tmp_path, llama, visual_folder, quantized):
    path = write(llama, tmp_path / "tiny.gguf", quantized)
    model = DualTokenForConditionalGeneration.from_llm(path, visual_folder, depth_transformer=HEADS).eval()
    processor = build_processor(visual_folder, str(path))
    ids = processor.apply_chat_template([{"role": "user", "content": "red"}])["input_ids"]
    assert (ids < len(TOKENS)).all()
    tolerance = {"atol": 0.1, "rtol": 0.1} if quantized else {"atol": 1e-5, "rtol": 1e-5}
    with torch.no_grad():
        found = model(input_ids=ids).logits[..., : len(TOKENS)]
        expected = llama(ids).logits
    assert torch.allclose(found, expected, **tolerance)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.language_model.parameters())
    save_model(model, processor, tmp_path / "saved")
    again = DualTokenPipeline.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).logits[..., : len(TOKENS)], found)
    saved = (tmp_path / "saved" / "config.json").read_text()
    assert "gguf" not in saved
    assert str(tmp_path) not in saved
    assert "quantization" not in saved


def test_the_language_model_of_a_gguf_file_can_be_saved_by_itself(tmp_path, llama):
    model = reader.load_gguf(write(llama, tmp_path / "tiny.gguf"), torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "llm")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "llm", dtype=torch.bfloat16)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_text_tokenizer_and_its_template_come_from_the_file(tmp_path, llama):
    tokenizer = load_text_tokenizer(write(llama, tmp_path / "tiny.gguf"))
    assert tokenizer.chat_template == TEMPLATE
    # The pre-tokenizer that the file names splits numbers into digits, whatever was merged.
    assert tokenizer.tokenize("red  12") == ["red", "Ġ", "Ġ", "1", "2"]
    assert tokenizer.eos_token == "<|im_end|>"
    tokenizer.save_pretrained(tmp_path / "saved")
    again = load_text_tokenizer(tmp_path / "saved")
    assert again("<|im_start|>a red 12")["input_ids"] == tokenizer("<|im_start|>a red 12")["input_ids"]


def test_a_file_that_cannot_be_used_is_one_line(tmp_path, llama, monkeypatch):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 and more")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(write(llama, tmp_path / "tiny.gguf").read_bytes()[:3000])
    unknown = write(llama, tmp_path / "unknown.gguf", kind="clip")
    reasons = {
        tmp_path / "missing.gguf": "missing.gguf.* cannot be read: No such file",
        tmp_path: "is a folder",
        other: "is not a GGUF file",
        cut: "no usable language model in .*cut.gguf",
        unknown: "does not read GGUF files of the architecture 'clip'",
    }
    for path, reason in reasons.items():
        with pytest.raises(UserError, match=reason) as caught:
            reader.load_gguf(path)
        assert "\n" not in str(caught.value)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(UserError, match=r"to read tiny.gguf the package gguf is needed .*pip install"):
        load_text_tokenizer(tmp_path / "tiny.gguf")


@pytest.fixture(scope="module")
def real(smollm2) -> DualTokenPipeline:
    visual = "pretrained/nano/visual_tokenizer"
    model = DualTokenForConditionalGeneration.from_llm(smollm2, visual, depth_transformer=HEADS)
    return DualTokenPipeline(model, build_processor(visual, smollm2))


@pytest.mark.real
def test_smollm2_knows_the_capital_of_france(real):
    assert real.answer(None, "What is the capital of France?") == "The capital of France is Paris."


@pytest.mark.real
def test_smollm2_answers_most_general_questions(real):
    asked = [(None, question.prompt) for question in GENERAL_QUESTIONS]
    answers = real.answer_many(asked, MAX_NEW_TOKENS, batch_size=20)
    right = [one.is_met(answer) for one, answer in zip(GENERAL_QUESTIONS, answers, strict=True)]
    assert sum(right) >= 34  # 36 in fp32
