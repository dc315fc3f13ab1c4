"""The unified model's calls of any causal language model of transformers."""

from dataclasses import fields
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

_FIELDS = {one.name for one in fields(BaseModelOutputWithPast)}
#: The name of a language model's cache in the installed transformers: `cache` since 5.24.
CACHE_NAME = "cache" if "cache" in _FIELDS else "past_key_values"


def visible_positions(attention_mask: Tensor) -> Tensor:
    """The position of every token among the unmasked ones: mask (B, L) -> (B, L); left padding is at 0."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def context_length(text_config: Any) -> int | None:
    """The language model's longest sequence in tokens; None where its configuration sets no limit."""
    limit = getattr(text_config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def run_language_model(
    language_model: Any,
    embeds: Tensor,
    attention_mask: Any = None,
    position_ids: Tensor | None = None,
    past: Cache | None = None,
    use_cache: bool = False,
    **kwargs: Any,
) -> Any:
    """The outputs of a language model without its output layer, for embeddings (B, L, H).

    Positions follow from the mask (B, L), padded on either side, unless they are given or there is a past.
    """
    if position_ids is None and past is None and attention_mask is not None and attention_mask.ndim == 2:
        position_ids = visible_positions(attention_mask)
    return language_model.base_model(
        inputs_embeds=embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=use_cache,
        **{CACHE_NAME: past},
        **kwargs,
    )
