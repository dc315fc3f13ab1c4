"""From the words of a command line to a `Recipe`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from ...common.errors import UserError
from .compose import composed
from .keys import build, check_configuration_keys, check_keys
from .recipe import Recipe
from .starting_point import StartingPoint

_HELP = ("help", "print_config")  # options of jsonargparse itself


def parse_recipe(arguments: list[str]) -> Recipe:
    """Read ``[RECIPE, --config RECIPE, --section.key value, ...]`` into a Recipe.

    RECIPE is a YAML file, or the name of one that the package ships (nano_sft). Of several the later ones
    win, and keys of the command line win over all files.

    Errors:
        UserError for a file that is not there, an unknown key, a wrong type or an impossible combination.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(
        exit_on_error=False,
        prog="dualtoken train",
        description="Train by a recipe. Every key of the YAML can be overridden on the command line.",
        epilog="example: dualtoken train nano_mllm --run.steps 200 --optimizer.lr 1e-3; the options that end "
        "in .help follow a recipe: dualtoken train nano_sft --mllm.help",
    )
    parser.add_argument(
        "--config", action="config", help="the recipe (may also be given as the first argument), or several"
    )
    parser.add_class_arguments(Recipe)
    files, overrides = _parted(arguments)
    settings = composed(files)
    check_keys(Recipe, settings)
    init_from = settings.get("init_from")
    for key, value in _keys(overrides):
        check_keys(Recipe, _nested(key, _value(value)))
        init_from = value if key == "init_from" else init_from
    start = StartingPoint.open(init_from)
    if start is not None:
        settings = start.beneath(settings)
    try:
        namespace = parser.parse_args([*_as_config(settings), *overrides])
        namespace.pop("config", None)
    except (ArgumentError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        # jsonargparse does not catch all the errors that values of a wrong type cause in it.
        raise UserError(f"recipe: {_reason(error)}") from error
    try:
        recipe = build(Recipe, namespace.as_dict())
    except UserError as error:
        raise UserError(f"recipe: {str(error).removeprefix('recipe: ')}") from None
    check_configuration_keys(recipe)
    if start is not None:
        start.refuse_contradictions(recipe)
    return recipe


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The recipe files that are given, and all other arguments."""
    files, rest = [], list(arguments)
    if rest and not rest[0].startswith("-"):
        files.append(rest.pop(0))
    others: list[str] = []
    words = iter(rest)
    for word in words:
        option, joined, value = word.partition("=")
        if option != "--config":
            others.append(word)
        elif not joined and (value := next(words, "")) == "":
            raise UserError("recipe: --config needs the file of a recipe")
        else:
            files.append(value)
    return files, others


def _keys(overrides: list[str]) -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every --key value on the command line."""
    for position, word in enumerate(overrides):
        if not word.startswith("--"):
            continue
        key, joined, value = word[2:].partition("=")
        if not joined:
            value = "".join(overrides[position + 1 : position + 2])
        if key.rpartition(".")[2] not in _HELP:
            yield key.rstrip("+"), value


def _value(text: str) -> Any:
    """What a value on the command line is as YAML; the text itself where it is none."""
    try:
        return yaml.safe_load(text) if text.strip() else text
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return text  # named when the value is read


def _nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} of "a.b"."""
    first, dot, rest = key.partition(".")
    return {first: _nested(rest, value) if dot else value}


def _as_config(settings: dict[str, Any]) -> list[str]:
    return [f"--config={yaml.safe_dump(settings)}"] if settings else []


#: Lines in which jsonargparse describes how it is built, not what is wrong.
_SCAFFOLD = re.compile(
    r"Parser key |Does not validate|Subtypes:|Errors:|Problem with given class_path|Given value|"
    r"Subclass types|Expected a <class 'NoneType'>|a class path|a dict w"
)
#: Its words for what is wrong, and ours.
_WORDS = (
    (re.compile(r"\ba <class 'int'>"), "an integer"),
    (re.compile(r"<class 'int'>"), "integer"),
    (re.compile(r"<class 'float'>"), "number"),
    (re.compile(r"<class 'str'>"), "text"),
    (re.compile(r"<class 'bool'>"), "truth value (true or false)"),
    (re.compile(r"<class 'dict'>"), "mapping"),
    (re.compile(r"<class '(list|tuple)'>"), "list"),
    (re.compile(r"Expected a typing\.Literal\[(.*?)\]\."), r"Expected one of \1."),
    (re.compile(r"Expected a dot import path string: (.*)"), r"Expected a mapping. Got value: \1"),
    (re.compile(r"Unable to load config ('.*')"), r"\1 is not a file of settings; give settings by name"),
    (re.compile(r"Not a valid subclass of \w+\."), "Expected a mapping."),
    (re.compile(r"the following arguments are required: (.*)"), r"\1 is missing"),
)


def _reason(error: BaseException) -> str:
    """jsonargparse's explanation as one line: which key, and what is wrong with it."""
    text = str(error)
    lines = [line.strip(" -") for line in text.splitlines()]
    reason = next((line for line in lines if line and not _SCAFFOLD.match(line)), text)
    for theirs, ours in _WORDS:
        reason = theirs.sub(ours, reason)
    keys = ".".join(re.findall(r'^[\s-]*Parser key "([^"]+)":\s*$', text, re.MULTILINE))
    return f"{keys}: {reason}" if keys else reason
