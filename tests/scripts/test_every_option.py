"""Every option of every command: parsers are light, and what a value may be is checked."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualtoken.scripts import cli, options

#: Numbers that no option takes, and texts that are none.
NEVER = [
    "nan",
    "inf",
    "-1",
    "1e308",
    "-1e308",
    "9" * 400,
    "9" * 5000,
    "abc",
    "",
    "0x10",
    "1,5",
    "\ud800",
    "None",
]
HEAVY = {"torch", "transformers", "datasets", "deepspeed", "scipy", "matplotlib", "torchvision"}


def parsers(name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parsers of a command and of all its kinds, with the words that lead to them."""
    module = importlib.import_module(f"dualtoken.scripts.{cli.COMMANDS[name].module}")
    yield from below(name, cli.command_parser(module, f"dualtoken {name}"))


def below(words: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for kind, one in action.choices.items():
                yield from below(f"{words} {kind}", one)


ALL = [(words, parser) for name in cli.COMMANDS for words, parser in parsers(name)]
ACTIONS = [
    pytest.param(parser, action, id=f"{words} {'/'.join(action.option_strings) or action.dest}")
    for words, parser in ALL
    for action in parser._actions
    if action.nargs != 0 and not isinstance(action, argparse._SubParsersAction)
]


def refused(parser: argparse.ArgumentParser, action: argparse.Action, value: str) -> str | None:
    """The message where a parser does not take a value, None where it does."""
    try:
        parser._get_values(action, [value])
    except argparse.ArgumentError as error:
        return str(error)
    return None


def test_there_is_something_to_walk_through():
    assert len(ALL) > 25
    assert len(ACTIONS) > 150


def test_no_parser_and_no_list_waits_for_a_model():
    code = (
        "import importlib, sys; from dualtoken.scripts import cli\n"
        "for name, command in cli.COMMANDS.items():\n"
        "    cli.command_parser(importlib.import_module(f'dualtoken.scripts.{command.module}'), name)\n"
        "assert cli.main(['eval', 'list']) == 0\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("parser", "action"), ACTIONS)
def test_every_number_has_a_range_and_every_message_an_end(parser, action):
    """A type of Python's own takes anything: `int` a number of 400 digits, `float` nan, `Path` a blank."""
    assert action.type not in (int, float, complex, Path), (
        "an argparse type of scripts/options.py checks more"
    )
    numeric = isinstance(action.default, int | float) and not isinstance(action.default, bool)
    if not numeric and action.type is not None and action.type is not options.path:
        numeric = getattr(action.type, "__qualname__", "").startswith(("integer.", "number."))
    for value in NEVER:
        message = refused(parser, action, value)
        assert message is not None or not numeric, f"{value[:20]!r} is taken"
        if message is not None:
            line = cli.one_line(f"{parser.prog}: error: {message} (see {parser.prog} --help)")
            assert len(line) <= 300
            assert "invalid" not in line or action.choices, "argparse's own words do not say what is allowed"


@pytest.mark.parametrize(("parser", "action"), ACTIONS)
def test_a_number_says_what_is_allowed(parser, action):
    if action.type is not None and action.type.__qualname__.startswith("integer."):
        assert "give an integer from" in (refused(parser, action, "-1") or "")
        assert action.default is None or refused(parser, action, str(action.default)) is None


def test_guidance_has_one_name_and_an_alias():
    (parser,) = (parser for words, parser in ALL if words == "sample")
    required = ["--prompt", "a star", "--output", "x"]
    for name in ("--guidance-scale", "--guidance"):
        assert parser.parse_args([*required, name, "1.5"]).guidance_scale == 1.5
