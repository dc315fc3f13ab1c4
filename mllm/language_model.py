"""What the unified model needs to know about any causal language model of transformers."""

from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

_FIELDS = {one.name for one in fields(BaseModelOutputWithPast)}
#: The name of a language model's cache in the installed transformers: `cache` since 5.24.
CACHE_NAME = "cache" if "cache" in _FIELDS else "past_key_values"


def visible_positions(attention_mask: Tensor) -> Tensor:
    """The position of every token (B, L) among those that its mask (B, L) shows; padding is at position 0."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def context_length(text_config: Any) -> int | None:
    """How many tokens the language model can hold; None where its configuration sets no limit."""
    return getattr(text_config, "max_position_embeddings", None) or None
