"""What README.md shows is there: its commands parse, its recipes, folders and Python names exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from dualtoken.scripts.cli import COMMANDS, command_parser

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```", README, re.MULTILINE | re.DOTALL)
COMMAND_LINES = [
    line.strip().removeprefix(".venv/bin/")
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if line.strip().removeprefix(".venv/bin/").startswith("dualtoken ")
]


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_command_line_parses(line):
    _, name, *arguments = shlex.split(line, comments=True)
    module = importlib.import_module(f"dualtoken.scripts.{COMMANDS[name].module}")
    command_parser(module, f"dualtoken {name}").parse_args(arguments)


def test_every_command_is_shown():
    assert {line.split()[1] for line in COMMAND_LINES} == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"train/recipes/\w+\.yaml", README))))
def test_a_recipe_exists(name):
    assert (ROOT / name).is_file()


def test_the_layout_names_every_folder_of_the_package():
    (layout,) = [block for _, block in BLOCKS if block.startswith("tokenizer/")]
    named = {line.split("/")[0] for line in layout.splitlines()}
    there = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert there - {"tests"} <= named
    assert all((ROOT / name).is_dir() for name in named - {"pretrained"})


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language == "python"])
def test_python_names_exist(block):
    compile(block, "README.md", "exec")
    for module, names in re.findall(r"^from (\S+) import (.+)$", block, re.MULTILINE):
        for name in names.split(","):
            found = getattr(importlib.import_module(module), name.strip())
            for method in re.findall(rf"\b{name.strip()}\.(\w+)", block):
                assert hasattr(found, method)


def test_the_measured_figures_have_their_place():
    assert README.index("<!-- nano figures: begin") < README.index("<!-- nano figures: end -->")
