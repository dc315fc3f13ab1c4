"""What README.md shows is there: its commands parse, its recipes, folders and Python names exist."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

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
    (layout,) = [block for _, block in BLOCKS if block.startswith("common/")]
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


@pytest.mark.timeout(900)
def test_the_walk_through_teaches_nano_what_its_records_say(tmp_path):
    """Every line of the section as it is printed; a comment "prints: …" is the whole output of its line."""
    for package in ("deepspeed", "peft", "tensorboard", "matplotlib"):
        pytest.importorskip(package)
    for name in ("docs", "examples", "pretrained", "train"):
        (tmp_path / name).symlink_to(ROOT / name)
    section = README.split("\n## Teach nano something of your own\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    promises = {}
    for line in block.splitlines():
        arguments = shlex.split(line.removeprefix("dualtoken "), comments=True)
        # Processes of their own: training makes the one it runs in a member of a process group.
        done = subprocess.run(
            [sys.executable, "-m", "dualtoken.scripts.cli", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        if promise := re.search(r"# prints: (.+)$", line):
            promises[promise[1]] = done.stdout.strip()
    assert promises == {"a wug": "a wug"}
    assert (tmp_path / "runs/own/curves.png").is_file()

    from dualtoken.data_pipelines.scenes.checker import find_objects

    drawings = [find_objects(Image.open(path)) for path in sorted(tmp_path.glob("samples/own/0000_*.png"))]
    purple = [any(item.colour == "purple" for item in found) for found in drawings]
    assert sum(purple) >= 3, drawings


def test_the_example_has_what_the_readme_says():
    records = json.loads((ROOT / "examples/llava/llava.json").read_text())
    images = [[entry] if isinstance(entry := r.get("image", []), str) else entry for r in records]
    turns = [[turn["value"] for turn in r["conversations"]] for r in records]
    drawn = [any("<image>" in value for value in values[1::2]) for values in turns]
    assert len({r["id"] for r in records}) == len(records) == 20
    assert sum(drawn) >= 2
    assert [] in images
    assert any(
        len(names) > 1 and values[0].count("<image>") > 1 for names, values in zip(images, turns, strict=True)
    )
    assert any(len(values) > 2 for values in turns)
    files = {path.name for path in (ROOT / "examples/llava/images").iterdir()}
    assert {name for names in images for name in names} == files
    assert "new.png" not in files
