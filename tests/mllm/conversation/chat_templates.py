"""Chat templates in the manner of well-known language models, and small tokenizers that have them."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AddedToken, AutoTokenizer, PreTrainedTokenizerFast

CHATML = """
{%- if messages[0].role == 'system' -%}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' -}}
{%- else -%}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' -}}{% endif -%}
"""

# Adds an empty thinking block to the last answer, and leaves it out of the answers before.
CHATML_THINKING = """
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- '<|im_start|>user\n' + message.content + '<|im_end|>\n' -}}
    {%- else -%}
        {{- '<|im_start|>assistant\n' -}}
        {%- if loop.last %}{{- '<think>\n\n</think>\n\n' + message.content.lstrip('\n') -}}
        {%- else %}{{- message.content -}}{% endif -%}
        {{- '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
    {%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\n\n</think>\n\n' -}}{% endif -%}
{%- endif -%}
"""

LLAMA3 = """
{{- bos_token -}}
{%- set date = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' -%}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date + '\n\n<|eot_id|>' -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' -}}
    {{- message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{% endif -%}
"""

LLAMA2 = """
{%- for message in messages -%}
    {%- if message.role == 'user' %}{{- bos_token + '[INST] ' + message.content.strip() + ' [/INST]' -}}
    {%- else %}{{- ' ' + message.content.strip() + ' ' + eos_token -}}{% endif -%}
{%- endfor -%}
"""

MISTRAL = """
{{- bos_token -}}
{%- for message in messages -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('roles must alternate user/assistant') -}}
    {%- endif -%}
    {%- if message.role == 'user' %}{{- '[INST] ' + message.content + '[/INST]' -}}
    {%- else %}{{- ' ' + message.content | trim + eos_token -}}{% endif -%}
{%- endfor -%}
"""

GEMMA = """
{{- bos_token -}}
{%- for message in messages -%}
    {%- set role = 'model' if message.role == 'assistant' else message.role -%}
    {{- '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' -}}{% endif -%}
"""

# Has turn tokens of the same names as DualToken's own, with other strings around them.
SAME_NAMES = """
{%- for message in messages -%}
    {{- '<|' + message.role + '|>\n' + message.content + '<|end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{- '<|assistant|>\n' -}}{% endif -%}
"""

# template, its special tokens, bos, eos, pad
FAMILIES: dict[str, tuple[str, list[str], str | None, str, str | None]] = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", "<|endoftext|>"),
    "chatml_thinking": (
        CHATML_THINKING,
        ["<|im_start|>", "<|im_end|>"],
        None,
        "<|im_end|>",
        "<|endoftext|>",
    ),
    "llama3": (
        LLAMA3,
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
        "<|eot_id|>",
        None,
    ),
    "llama2": (LLAMA2, [], "<s>", "</s>", None),
    "mistral": (MISTRAL, ["[INST]", "[/INST]"], "<s>", "</s>", None),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", "<pad>"),
    "same_names": (SAME_NAMES, ["<|user|>", "<|assistant|>", "<|end|>"], "<s>", "</s>", "</s>"),
}


def chat_tokenizer(text_folder: Path, family: str) -> PreTrainedTokenizerFast:
    """The tests' text tokenizer without DualToken's tokens, with those and the template of a family."""
    template, tokens, bos, eos, pad = FAMILIES[family]
    backend = json.loads(AutoTokenizer.from_pretrained(text_folder).backend_tokenizer.to_str())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] == 0]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        unk_token="<unk>",
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], True)
    tokenizer.chat_template = template
    return tokenizer
