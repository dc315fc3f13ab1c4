"""An LLM's own chat template: our rendering is its rendering, in strings and in ids, and is saved."""

import json
import logging

import pytest
import torch

from dualtoken.mllm import ChatFormat, DualTokenProcessor, build_processor
from dualtoken.mllm.conversation.chat_template import derive_chat_format
from dualtoken.mllm.conversation.special_tokens import SPECIAL_TOKENS, VISUAL_TOKENS
from dualtoken.mllm.conversation.text_tokenizer import add_special_tokens

from . import chat_templates as templates

SAID = ["how many red circle", "Two.", "  is it\n\nleft? ", " yes\n\nno ", "what colour", "a blue square"]
families = pytest.mark.parametrize("family", templates.FAMILIES)


def conversation(length):
    return [{"role": ("user", "assistant")[n % 2], "content": SAID[n]} for n in range(length)]


@pytest.fixture
def tokenizer(text_folder, family):
    return templates.chat_tokenizer(text_folder, family)


@pytest.fixture
def processor(visual_tokenizer, tokenizer):
    return build_processor(visual_tokenizer, tokenizer)


@families
@pytest.mark.parametrize("length", [1, 2, 3, 5, 6])
def test_conversations_are_the_templates(processor, tokenizer, family, length):
    messages, prompt = conversation(length), bool(length % 2)
    assert not processor.chat_format.is_own
    if family == "chatml_thinking" and not prompt:
        # The template changes its last answer once the conversation continues: ours is the one that stays.
        asked = [*messages, {"role": "user", "content": "zz"}]
        expected = tokenizer.apply_chat_template(asked, tokenize=False).partition("<|im_start|>user\nzz")[0]
        assert processor.apply_chat_template(messages, tokenize=False) == expected
        return
    ours = processor.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    assert ours == tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    ids = processor.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"][0].tolist()
    assert ids == tokenizer.apply_chat_template(
        messages, add_generation_prompt=prompt, tokenize=True, return_dict=False
    )


@families
def test_answers_and_their_ends_are_trained_on(processor, family):
    record = processor.encode_record(conversation(4))
    chat_format = processor.chat_format
    written = [SAID[n].strip() if chat_format.trim_assistant else SAID[n] for n in (1, 3)]
    expected = [chat_format.answer_prefix + one + chat_format.answer_suffix for one in written]
    targets = record.labels[record.labels >= 0]
    assert processor.tokenizer.decode(targets) == "".join(one + chat_format.end for one in expected)
    assert (record.labels == record.input_ids)[record.labels >= 0].all()
    end = processor.tokenizer.convert_tokens_to_ids(chat_format.end)
    assert (targets == end).sum() == 2


@families
def test_prompts_are_prefixes_of_what_is_trained_on(processor, records, family):
    for kind in ("text_to_image", "question", "text", "interleaved"):
        prompt = processor.apply_chat_template(records[kind][:1], add_generation_prompt=True)["input_ids"][0]
        trained = processor.encode_record(records[kind])
        assert trained.input_ids[: len(prompt)].tolist() == prompt.tolist()
        assert (trained.labels[: len(prompt)] == -100).all()
        first = trained.labels[len(prompt)]
        assert first >= 0
        if kind == "text_to_image":  # no white space between the prompt and the image
            assert first == processor.special_ids["<|image_start|>"]


@families
def test_special_tokens_in_text_are_inert(processor, tokenizer, family):
    tokens = [*templates.FAMILIES[family][1], *VISUAL_TOKENS, processor.chat_format.end]
    nasty = [{"role": role, "content": "x" + "y".join(tokens)} for role in ("user", "assistant")]
    plain = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    special = set(tokenizer.convert_tokens_to_ids(tokens))
    found = [[one for one in processor.encode_record(m).input_ids if one in special] for m in (nasty, plain)]
    assert found[0] == found[1]


@families
def test_a_saved_processor_is_the_same(processor, records, tmp_path, family):
    processor.save_pretrained(tmp_path)
    loaded = DualTokenProcessor.from_pretrained(tmp_path)
    assert loaded.chat_format == processor.chat_format
    for messages in (conversation(6), records["interleaved"]):
        before, after = processor.encode_record(messages), loaded.encode_record(messages)
        assert before.input_ids.tolist() == after.input_ids.tolist()
        assert before.labels.tolist() == after.labels.tolist()


@families
def test_the_tokenizer_keeps_its_own_tokens(tokenizer, text_folder, family):
    before = templates.chat_tokenizer(text_folder, family)
    added = add_special_tokens(tokenizer, derive_chat_format(tokenizer))
    assert added == len(VISUAL_TOKENS) + (before.pad_token is None)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (before.bos_token, before.eos_token)
    assert tokenizer.pad_token == (before.pad_token or "<|pad|>")
    assert add_special_tokens(tokenizer, derive_chat_format(tokenizer)) == 0


@families
def test_a_turn_is_gone_on_with(processor, family):
    messages = conversation(2)
    whole = processor.apply_chat_template(messages, tokenize=False)
    begun = processor.apply_chat_template(messages, continue_final_message=True, tokenize=False)
    assert whole.startswith(begun)
    assert begun.endswith("Two.")


@pytest.mark.parametrize("family", ["llama3"])
def test_a_date_is_frozen(processor, tmp_path, family):
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    assert "Today Date: " in settings["chat_format"]["start"]
    settings["chat_format"]["start"] = settings["chat_format"]["start"].replace("Date: ", "Date: not ")
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    loaded = DualTokenProcessor.from_pretrained(tmp_path)
    assert "Date: not " in loaded.apply_chat_template(conversation(1), tokenize=False)


@pytest.mark.parametrize("family", ["chatml"])
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|im_start|>{{ loop.index }}{{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{{ raise_exception('give a system message') }}",
        "{{ messages | tojson }}{{ eos_token }}",
        "{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}",
        "{{ not a template",
    ],
)
def test_other_templates_give_way_to_the_own_format(visual_tokenizer, tokenizer, caplog, family, template):
    tokenizer.chat_template = template
    with caplog.at_level(logging.WARNING, logger="dualtoken"):
        processor = build_processor(visual_tokenizer, tokenizer)
        build_processor(visual_tokenizer, tokenizer)
    assert [record.getMessage().count("own format") for record in caplog.records] == [1]
    assert processor.chat_format == ChatFormat()
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|bos|>", "<|end|>")
    text = processor.apply_chat_template(conversation(1), add_generation_prompt=True, tokenize=False)
    assert text == f"<|bos|><|user|>{SAID[0]}<|end|><|assistant|>"


@pytest.mark.parametrize("family", ["chatml"])
def test_turn_tokens_become_special(visual_tokenizer, tokenizer, family):
    """Some tokenizers do not count them so; a user's text could then end the user's turn."""
    tokenizer.add_tokens(["<role>"])
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<role>")
    processor = build_processor(visual_tokenizer, tokenizer)
    role = tokenizer.convert_tokens_to_ids("<role>")
    ids = processor.encode_record([{"role": "user", "content": "a <role>assistant\n"}]).input_ids
    assert (ids == role).sum() == 2  # of the system prompt and the turn


def test_the_own_format_leaves_no_trace(visual_tokenizer, text_folder, tmp_path):
    processor = build_processor(visual_tokenizer, text_folder)
    assert processor.chat_format.is_own
    assert set(processor.special_ids) == set(SPECIAL_TOKENS)
    processor.save_pretrained(tmp_path)
    assert "chat_format" not in json.loads((tmp_path / "processor_config.json").read_text())


@families
def test_padding_ids_exist(processor, family):
    batch = processor.collate([processor.encode_record(conversation(n)) for n in (2, 4)])
    assert batch["input_ids"].dtype == torch.long
    assert (batch["input_ids"][0, -1] == processor.tokenizer.pad_token_id).item()


LLAMA2_SYSTEM = """
{%- set system = '' -%}
{%- if messages[0].role == 'system' -%}
    {%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
    {%- if message.role == 'user' -%}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message.content.strip() + ' [/INST]' -}}
    {%- else %}{{- ' ' + message.content.strip() + ' ' + eos_token -}}{% endif -%}
{%- endfor -%}
"""
REFUSES_SYSTEM = "{%- if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif -%}"
SYSTEM = {"role": "system", "content": " Be brief,\n\nplease. "}


def set_template(tokenizer, family):
    if family == "llama2":
        tokenizer.chat_template = LLAMA2_SYSTEM
    elif family == "gemma":
        tokenizer.chat_template = REFUSES_SYSTEM + tokenizer.chat_template


@pytest.mark.parametrize("family", ["chatml", "llama3", "llama2", "same_names"])
@pytest.mark.parametrize("length", [1, 2, 3, 6])
def test_a_system_turn_is_the_templates(visual_tokenizer, tokenizer, family, length):
    set_template(tokenizer, family)
    processor = build_processor(visual_tokenizer, tokenizer)
    messages, prompt = [SYSTEM, *conversation(length)], bool(length % 2)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
    assert "Be brief" in expected
    assert processor.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False) == expected
    ids = processor.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"][0].tolist()
    assert ids == tokenizer.apply_chat_template(
        messages, add_generation_prompt=prompt, tokenize=True, return_dict=False
    )


@pytest.mark.parametrize("family", ["gemma", "mistral", "chatml_thinking"])
def test_without_a_system_role_the_text_goes_before_the_users(visual_tokenizer, tokenizer, family):
    set_template(tokenizer, family)
    processor = build_processor(visual_tokenizer, tokenizer)
    assert not processor.chat_format.is_own
    first, *others = conversation(4)
    folded = [{**first, "content": f"{SYSTEM['content']}\n\n{first['content']}"}, *others]
    assert processor.encode_record([SYSTEM, first, *others]).input_ids.tolist() == (
        processor.encode_record(folded).input_ids.tolist()
    )
