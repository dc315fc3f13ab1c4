"""The keys of a recipe, at any depth: an unknown one is named together with the one that was meant."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from transformers import CONFIG_MAPPING, PreTrainedConfig, SiglipTextConfig, SiglipVisionConfig

from ...common.errors import UserError, shown
from .recipe import Recipe

#: Keys of configurations that transformers still reads, though no class has such a field any more.
OLDER_KEYS = {"model_type", "rope_theta", "rope_scaling", "torch_dtype"}
#: Characters of the allowed keys in a message; --recipe-help lists all.
LONGEST_LIST = 140
Section = TypeVar("Section")


def check_keys(section: type, given: Mapping[str, Any], path: str = "") -> None:
    """Compare the keys of nested mappings with the fields of a dataclass and of the dataclasses in it.

    path: where the mapping stands, as "mllm.model", for the message. Settings that are not sections are not
        looked at.

    Errors:
        UserError for the first unknown key, or for a section that is not a mapping.
    """
    hints = typing.get_type_hints(section)
    for key, value in given.items():
        name = f"{path}.{key}".lstrip(".")
        if key not in hints:
            raise UserError(unknown_key(name, hints))
        _require_mappings(hints[key], value, name)
        for inner, mapping, where in _sections(hints[key], value, name):
            check_keys(inner, mapping, where)


def _require_mappings(hint: Any, value: Any, name: str) -> None:
    """Raise UserError for a section that is a number, a list or null. A text may be the path of a file."""
    if is_dataclass(hint) and not isinstance(value, Mapping | str):
        given = "null" if value is None else shown(value)
        raise UserError(f"recipe: {name} is {given}; expected settings by name")
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        for key, item in value.items():
            _require_mappings(typing.get_args(hint)[1], item, f"{name}.{key}")


def defaults(section: type, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, default) of every field of a dataclass, and of the dataclasses in it, that has one.

    In a dictionary of dataclasses `*` stands for every name: `data.sources.*.weight`.
    """
    hints = typing.get_type_hints(section)
    for one in fields(section):
        name = f"{path}.{one.name}".lstrip(".")
        value = one.default if one.default_factory is MISSING else one.default_factory()
        if value is not MISSING and not is_dataclass(value):
            yield name, list(value) if isinstance(value, tuple) else value
        inner = f"{name}.*" if typing.get_origin(hints[one.name]) is dict else name
        for option in (hints[one.name], *typing.get_args(hints[one.name])):
            if isinstance(option, type) and is_dataclass(option):
                yield from defaults(option, inner)


def default_of(key: str, known: Mapping[str, Any], missing: Any = None) -> Any:
    """The default of a dotted key, from `defaults`; `missing` where there is none."""
    if key in known:
        return known[key]
    return next((value for pattern, value in known.items() if fnmatchcase(key, pattern)), missing)


def check_configuration_keys(recipe: Recipe) -> None:
    """Compare the mappings in a recipe that are configurations of transformers with the fields of theirs.

    Errors:
        UserError for the first unknown key. Model types that transformers does not know are not looked at.
    """
    if recipe.contrastive is not None:
        _check_fields(SiglipVisionConfig, recipe.contrastive.vision_config, "contrastive.vision_config")
        _check_fields(SiglipTextConfig, recipe.contrastive.text_config, "contrastive.text_config")
    llm = None if recipe.mllm is None else recipe.mllm.llm
    model_type = llm.get("model_type") if isinstance(llm, Mapping) else None
    if isinstance(llm, Mapping) and isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        _check_fields(CONFIG_MAPPING[model_type], llm, "mllm.llm")


def _check_fields(kind: Any, given: Mapping[str, Any], path: str) -> None:
    common = {one.name for one in fields(PreTrainedConfig)}
    specific = {one.name for one in fields(kind)} - common | set(kind.attribute_map)
    for key in given:
        if key not in specific | common | OLDER_KEYS:
            raise UserError(unknown_key(f"{path}.{key}", {*specific, "model_type"}))


def unknown_key(name: str, allowed: typing.Iterable[str]) -> str:
    """The message for a dotted key whose last part is not one of those allowed there."""
    names = sorted(allowed)
    near = get_close_matches(name.rpartition(".")[2], names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed, length = [], 0
    for one in names:  # complete names only, few enough for one line
        length += len(one) + 2
        if length > LONGEST_LIST:
            listed.append("…")
            break
        listed.append(one)
    return f"recipe: unknown key {shown(name)}; {hint}allowed: {', '.join(listed)}"


def build(section: type[Section], given: Mapping[str, Any], path: str = "") -> Section:
    """A dataclass, and all dataclasses in it, of nested mappings whose keys and types are right.

    Errors:
        UserError for what a dataclass refuses; the message begins with the dotted key.
    """
    hints = typing.get_type_hints(section)
    values = {key: _built(hints[key], value, f"{path}.{key}".lstrip(".")) for key, value in given.items()}
    try:
        return section(**values)
    except UserError as error:
        raise UserError(f"{path}.{error}" if path else str(error)) from None


def _built(hint: Any, value: Any, path: str) -> Any:
    """`value` with every mapping in it that a dataclass describes as an object of that dataclass."""
    for section, mapping, where in _sections(hint, value, path):
        if where == path:
            return build(section, mapping, path)
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        return {key: _built(typing.get_args(hint)[1], one, f"{path}.{key}") for key, one in value.items()}
    return value


def _sections(hint: Any, value: Any, path: str) -> Iterator[tuple[type, Mapping[str, Any], str]]:
    """(dataclass, mapping, path) of every mapping in `value` that a dataclass of the hint describes."""
    if not isinstance(value, Mapping):
        return
    if is_dataclass(hint) and isinstance(hint, type):
        yield hint, value, path
    elif typing.get_origin(hint) is dict:
        for key, item in value.items():
            yield from _sections(typing.get_args(hint)[1], item, f"{path}.{key}")
    else:
        for option in typing.get_args(hint):
            yield from _sections(option, value, path)
