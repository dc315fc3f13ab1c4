"""The settings of a saved generation_config.json, checked when the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ...common.errors import UserError, shown
from ...common.values import finite_number, flag, whole_number

FILE = "generation_config.json"
LONGEST, MOST_BEAMS = 1 << 27, 64


def check_generation_settings(settings: Mapping[str, Any], num_tokens: int) -> None:
    """Raise UserError for settings out of range, and for those that only `generate` may be given.

    The latter need code, another model or a text tokenizer: stop strings, assistant models, watermarks, …

    settings: those that differ from transformers' defaults; None and False mean that one is not set.
    num_tokens: size of the vocabulary; token ids are below it.
    """
    for name, value in settings.items():
        if value is None or value is False or name in _NOTES:
            continue
        if name in _TOKENS:
            for one in value if isinstance(value, list) and value else [value]:
                whole_number(one, f"{FILE}: {name}", 0, num_tokens - 1)
        elif name in _CHECKS:
            _CHECKS[name](value, f"{FILE}: {name}")
        else:
            raise UserError(f"{FILE}: {name} is {shown(value)}; a model's folder cannot set it: take it out")


#: Metadata, not settings.
_NOTES = frozenset({"transformers_version", "_from_model_config", "auto_map", "trust_remote_code"})
_TOKENS = frozenset({"bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens"})
_count, _number = partial(whole_number, most=LONGEST), finite_number
_CHECKS: dict[str, Callable[[Any, str], object]] = {
    **dict.fromkeys(("do_sample", "use_cache", "remove_invalid_values", "renormalize_logits"), flag),
    **dict.fromkeys(("max_new_tokens", "max_length"), partial(_count, least=1)),
    **dict.fromkeys(("min_new_tokens", "min_length", "no_repeat_ngram_size", "top_k"), _count),
    **dict.fromkeys(("num_beams", "num_return_sequences"), partial(whole_number, least=1, most=MOST_BEAMS)),
    **dict.fromkeys(("temperature", "repetition_penalty"), partial(_number, above=0.0)),
    **dict.fromkeys(("top_p", "typical_p"), partial(_number, above=0.0, most=1.0)),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff"), partial(_number, least=0.0, most=1.0)),
    "length_penalty": _number,
    "early_stopping": flag,
}
