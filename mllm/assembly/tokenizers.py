"""The two tokenizers of a unified model: the text tokenizer, and the visual one with its codebooks."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...common.errors import UserError
from ...common.loading.model_files import check_model_files
from ...common.loading.strict import loading_reason
from ...tokenizer import DualTokenizer, StoredTokenizer
from ..configuration import DualTokenConfig
from ..conversation.chat_format import ChatFormat
from ..conversation.chat_template import derive_chat_format
from ..conversation.rendering import render, unconditional_prompt
from ..conversation.special_tokens import SPECIAL_TOKENS, VISUAL_TOKENS
from ..conversation.text_tokenizer import add_special_tokens, encode_segments, special_pattern
from .gguf import gguf_text_tokenizer, is_gguf

TextTokenizerSource = str | Path | PreTrainedTokenizerBase
VisualTokenizerSource = str | Path | DualTokenizer | StoredTokenizer

# Fields of the configuration, in the order of the special tokens.
_OWN = ("bos_token_id", "pad_token_id", "user_token_id", "assistant_token_id", "eos_token_id")
_VISUAL = ("image_start_token_id", "image_token_id", "image_end_token_id", "unconditional_token_id")
VISUAL_TOKEN_FIELDS = dict(zip(_VISUAL, VISUAL_TOKENS, strict=True))
OWN_TOKEN_FIELDS = dict(zip(_OWN, SPECIAL_TOKENS, strict=False))


def load_text_tokenizer(source: TextTokenizerSource) -> PreTrainedTokenizerBase:
    """A text tokenizer from a folder, hub id or GGUF file (or as given); UserError when there is none."""
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    if is_gguf(source):
        return gguf_text_tokenizer(source)
    check_model_files(source)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # untrusted files, read by transformers and tokenizers
        reason = loading_reason(error)
        if reason.endswith(":"):  # a list of what was tried follows
            reason = "it has no usable tokenizer.json or other tokenizer file"
        raise UserError(f"no text tokenizer at {source}; give its folder or hub id ({reason})") from error


def prepare_text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Add missing special tokens, in place; returns the format of conversations."""
    chat_format = derive_chat_format(tokenizer)
    add_special_tokens(tokenizer, chat_format)
    return chat_format


def token_ids(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> dict[str, Any]:
    """The configuration's `*_token_id` fields."""
    fields = OWN_TOKEN_FIELDS if chat_format.is_own else {"eos_token_id": chat_format.end}
    named = {**fields, **VISUAL_TOKEN_FIELDS}
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in named.items()}
    if chat_format.is_own:
        return ids
    return {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id, **ids}


def unconditional_prompt_ids(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> list[int] | None:
    """The ids of guidance's unconditional prompt, up to the image; None for DualToken's own chat format."""
    if chat_format.is_own:
        return None
    segments = render(unconditional_prompt(), add_generation_prompt=True, chat_format=chat_format)
    pieces = encode_segments(tokenizer, segments, 0, special_pattern(tokenizer))
    return [one for ids, _ in pieces for one in ids]


def open_visual_tokenizer(source: VisualTokenizerSource, load: bool) -> DualTokenizer | StoredTokenizer:
    """The visual tokenizer; with `load` False, for a folder or hub id, only its configuration and weights."""
    if isinstance(source, DualTokenizer):
        return source
    stored = source if isinstance(source, StoredTokenizer) else StoredTokenizer.from_pretrained(source)
    return stored.load() if load else stored


def stored_codebooks(
    visual_tokenizer: DualTokenizer | StoredTokenizer, config: DualTokenConfig
) -> dict[str, Tensor]:
    """The code vectors (tables, N, C) of each branch of a model.

    Raises:
        UserError: grid or codebooks do not have the sizes of the model's configuration.
    """
    grid = visual_tokenizer.config.grid_size
    if list(grid) != list(config.grid_size):
        raise UserError(
            f"the visual tokenizer has a grid of {tuple(grid)} positions, the model one of "
            f"{tuple(config.grid_size)}; use the tokenizer that the model was built with"
        )
    weights, found = visual_tokenizer.state_dict(), {}
    for name in config.branches:
        stored = "semantic" if visual_tokenizer.config.shared_quantizer else name
        found[name] = weights[f"{stored}_quantizer.codebooks.vectors"]
        sizes = config.codebooks[name]
        expected = (1 if sizes.shared_codebook else sizes.depth, sizes.num_codes, sizes.code_dim)
        if found[name].shape != expected:
            raise UserError(
                f"the visual tokenizer's {name} codebook is {tuple(found[name].shape)} (tables, codes, "
                f"dimension), the model's {expected}; use the tokenizer that the model was built with"
            )
    return found
