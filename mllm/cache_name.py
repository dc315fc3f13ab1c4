"""The name of a language model's cache in the installed transformers: `cache` since 5.24."""

from dataclasses import fields

from transformers.modeling_outputs import BaseModelOutputWithPast

_NAMES = {one.name for one in fields(BaseModelOutputWithPast)}
CACHE_NAME = "cache" if "cache" in _NAMES else "past_key_values"
