"""The two tokenizers of a unified model: text with its special tokens, and the source of the codebooks."""

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
from ..conversation.special_tokens import (
    ASSISTANT,
    BOS,
    END,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    PAD,
    UNCONDITIONAL,
    USER,
)
from ..conversation.text_tokenizer import add_special_tokens, encode_segments, special_pattern

TextTokenizerSource = str | Path | PreTrainedTokenizerBase
VisualTokenizerSource = str | Path | DualTokenizer | StoredTokenizer

VISUAL_TOKEN_FIELDS = {
    "image_start_token_id": IMAGE_START,
    "image_token_id": IMAGE,
    "image_end_token_id": IMAGE_END,
    "unconditional_token_id": UNCONDITIONAL,
}
OWN_TOKEN_FIELDS = {
    "bos_token_id": BOS,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "user_token_id": USER,
    "assistant_token_id": ASSISTANT,
}


def load_text_tokenizer(source: TextTokenizerSource) -> PreTrainedTokenizerBase:
    """A text tokenizer from a folder or hub id (or as given); UserError when there is none."""
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    check_model_files(source)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # files from elsewhere, read by transformers and tokenizers
        raise UserError(
            f"no text tokenizer at {source}; give its folder or hub id ({loading_reason(error)})"
        ) from error


def prepare_text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Add the special tokens that are missing, in place; returns the format of conversations."""
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
    """What guidance's unconditional rows start from, up to the image; None: as the own chat format has it."""
    if chat_format.is_own:
        return None
    segments = render(unconditional_prompt(), add_generation_prompt=True, chat_format=chat_format)
    pieces = encode_segments(tokenizer, segments, 0, special_pattern(tokenizer))
    return [one for ids, _ in pieces for one in ids]


def open_visual_tokenizer(source: VisualTokenizerSource, load: bool) -> DualTokenizer | StoredTokenizer:
    """The visual tokenizer, or (`load` False, and none was given) its configuration and weights alone."""
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
