"""The unified model's calls of any causal language model of transformers."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..common.errors import UserError

_FIELDS = {one.name for one in fields(BaseModelOutputWithPast)}
#: The name of a language model's cache in the installed transformers: `cache` since 5.24.
CACHE_NAME = "cache" if "cache" in _FIELDS else "past_key_values"


def visible_positions(attention_mask: Tensor) -> Tensor:
    """The position of every token among the unmasked ones: mask (B, L) -> (B, L); left padding is at 0."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def new_positions(attention_mask: Tensor, new: int, past: Cache | None) -> Tensor:
    """The positions (B, new) of the tokens after `past`, among the unmasked ones of the mask (B, past + new).

    A mask may be longer, for tokens to come.

    Raises:
        UserError: a mask of fewer columns, as one of the new tokens only: it does not tell which of the
            earlier tokens are padding.
    """
    seen: Any = 0 if past is None else past.get_seq_length()  # of static caches a tensor
    # The comparison waits for the device if it is a tensor; transformers waits for it in any case.
    if not torch.compiler.is_compiling() and attention_mask.shape[1] < seen + new:
        raise UserError(
            f"attention_mask has {attention_mask.shape[1]} columns for {int(seen)} cached and {new} new "
            f"tokens; give it all {int(seen) + new}: append ones for new tokens to the prompts' mask"
        )
    index = torch.arange(new, device=attention_mask.device)
    index = index + (seen.to(index.device) if isinstance(seen, Tensor) else seen)
    return visible_positions(attention_mask).index_select(1, index)


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

    Unless positions (B, L) are given, they follow from a mask (B, past + L), padded on either side, with and
    without a past. Without a mask, or with one of four dimensions, the language model counts from the past.

    Raises:
        UserError: a mask (B, ...) of fewer columns than past and new tokens.
    """
    if position_ids is None and isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        position_ids = new_positions(attention_mask.to(embeds.device), embeds.shape[1], past)
    return language_model.base_model(
        inputs_embeds=embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=use_cache,
        **{CACHE_NAME: past},
        **kwargs,
    )


def kept_states(outputs: BaseModelOutputWithPast, logits_to_keep: int | Tensor) -> Tensor:
    """The states whose logits are wanted: the last ones (0: all), or those at the given indices."""
    kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
    assert outputs.last_hidden_state is not None
    return outputs.last_hidden_state[:, kept]
