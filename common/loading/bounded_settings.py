"""Limits of the sizes in an untrusted config.json, checked before anything is built from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import UserError, shown
from ..json_files import DEEPEST, nesting

#: (keys, greatest value) of integers from 0; the first pattern that matches a key counts.
LIMITS = (
    (re.compile(r".*layers?|num_.*blocks|depth"), 4096),
    (re.compile(r"(num|n)_.*(heads?|groups?|experts?|stages?)(_.*)?|norm_groups"), 4096),
    (re.compile(r".*(hidden|intermediate|ffn|inner|embd|latent).*|.*_dim|d_.*"), 1 << 20),
    (re.compile(r"(image|patch)_size|.*channels|ch|ch_mult|grid_size"), 1 << 16),
    (re.compile(r"vocab_size|num_codes"), 1 << 24),
    (re.compile(r".*positions?(_.*)?|n_ctx|max_seq_len"), 1 << 27),
)
LAYERS = LIMITS[0][0]
LARGEST_INTEGER = 1 << 53
LONGEST_LIST = 1 << 16
#: Keys that would load other files or code.
REFUSED = {"configuration_files", "transformers_weights", "gguf_file"}
ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise UserError, naming `where` and the key, for settings that would take too much memory or time.

    Limits the depth of nesting, lengths of lists, layers, widths and vocabularies, before types and relations
    are checked. Also refuses keys that would load other files or code.
    """
    if nesting(settings) > DEEPEST:
        raise UserError(f"{where} is nested deeper than {DEEPEST} levels")
    for key, value in _pairs(settings):
        if key in REFUSED and value is not None:
            raise UserError(f"{where}: {key} is {shown(value)}; other files are not loaded")
        if key.lstrip("_").startswith("attn_implementation") and not _is_attention(value):
            raise UserError(f"{where}: {key} is {shown(value)}; allowed: {', '.join(ATTENTION)}")
        if isinstance(value, list) and len(value) > LONGEST_LIST:
            raise UserError(f"{where}: {key} has {len(value)} entries; at most {LONGEST_LIST} are read")
        numbers = value if isinstance(value, list) else [value]
        for number in numbers:
            if isinstance(number, int) and not isinstance(number, bool):
                _check_number(key, number, where)


def most_layers(settings: Mapping[str, Any]) -> int:
    """The greatest number of layers in any part of the settings."""
    numbers = (value for key, value in _pairs(settings) if LAYERS.fullmatch(key))
    return max((number for number in numbers if isinstance(number, int)), default=0)


def _check_number(key: str, number: int, where: str) -> None:
    most = next((most for pattern, most in LIMITS if pattern.fullmatch(key)), None)
    least, most = (-LARGEST_INTEGER, LARGEST_INTEGER) if most is None else (0, most)
    if not least <= number <= most:
        raise UserError(f"{where}: {key} is {shown(number)}; give an integer from {least} to {most}")


def _is_attention(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_attention(one) for one in value.values())
    return value is None or value in ATTENTION


def _pairs(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys and values of nested objects, also of those in lists."""
    open_ = [settings]
    while open_:
        for key, value in open_.pop().items():
            yield str(key), value
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, Mapping):
                    open_.append(item)
