"""README.md, CONTRIBUTING.md and the pages in docs/: commands parse; recipes, folders and names exist."""

import ast
import functools
import importlib
import inspect
import re
import shlex
from pathlib import Path

import pytest

from dualtoken.scripts.cli import COMMANDS, command_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# A placeholder, and a file of MMMU's.
NOT_OURS = {"scripts/NAME.py", "eval/eval_utils.py"}
FOLDERS = "common|tokenizer|mllm|data_pipelines|train|eval|scripts|benchmarks|ablations|examples"
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    return [
        block for language, block in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages
    ]


def command_lines(page: Path) -> list[str]:
    """Every line of a block that is a command of ours; lines that end in a backslash are continued."""
    lines = "\n".join(blocks(page, "", "bash")).replace("\\\n", " ").splitlines()
    words = (line.strip().removeprefix(".venv/bin/") for line in lines)
    return [line for line in words if line.startswith("dualtoken ")]


@functools.cache
def parser_of(name: str):
    module = importlib.import_module(f"dualtoken.scripts.{COMMANDS[name].module}")
    return command_parser(module, f"dualtoken {name}")


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)], ids=relative)
def test_command_lines_parse(page):
    for line in command_lines(page):
        _, name, *arguments = shlex.split(line, comments=True)
        parser_of(name).parse_args(arguments)


def test_every_command_is_shown():
    assert {line.split()[1] for page in PAGES for line in command_lines(page)} == set(COMMANDS)
    page = ROOT / "docs/howto/use_the_commands.md"
    assert {line.split()[1] for line in command_lines(page)} == {*COMMANDS}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_files_of_the_package_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(rf"\b(?:{FOLDERS})/[\w./]*\.(?:py|yaml|sbatch)\b", text)) - NOT_OURS:
        assert (ROOT / name).is_file(), name
    for name in set(re.findall(r"dualtoken\.scripts\.([a-z][\w.]*\w)", text)):
        assert (ROOT / "scripts" / f"{name.replace('.', '/')}.py").is_file(), name


def test_the_recipe_for_fine_tuning_is_complete(tmp_path):
    from dualtoken.train.config.reading import parse_recipe

    recipe = blocks(ROOT / "docs/howto/fine_tune_with_lora.md", "yaml")[0]
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.replace("my-model", str(ROOT / "pretrained/nano")))
    assert parse_recipe([str(file)]).mllm.lora.rank == 16
    assert len(recipe.splitlines()) < 20


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=relative)
def test_python_names_exist(page):
    """Imports of examples can be imported, and methods called on an imported class are there."""
    for block in blocks(page, "python"):
        code = inspect.cleandoc(block)
        compile(code, relative(page), "exec")
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("dualtoken"):
                continue
            for alias in node.names:
                found = getattr(importlib.import_module(node.module or ""), alias.name)
                for method in re.findall(rf"\b{alias.name}\.(\w+)", code):
                    assert hasattr(found, method), f"{alias.name}.{method}"


@pytest.mark.parametrize("page", PAGES[:2], ids=relative)
def test_links_of_pages_outside_the_site_lead_to_files(page):
    """Links of the pages in docs/ are checked when the site is built (mkdocs build --strict)."""
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_map_names_every_folder_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    there = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    rooms = {f"{name}/{path.parent.name}/" for name in there for path in (ROOT / name).glob("*/__init__.py")}
    assert {f"{name}/" for name in there if f"`{name}/`" not in text} == set()
    assert {room for room in rooms if f"`{room}`" not in text} == set()
    named = set(re.findall(r"`((?:\w+/)+)`", text))
    assert {name for name in named if not (ROOT / name).is_dir()} == set()


def test_the_measured_metrics_have_their_place():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = readme.index("<!-- nano metrics: begin"), readme.index("<!-- nano metrics: end -->")
    rows = [line for line in readme[begin:end].splitlines() if line.startswith("| ")][1:]
    card = (ROOT / "pretrained/nano/README.md").read_text(encoding="utf-8")
    assert len(rows) == 5
    assert [row for row in rows if row not in card] == []
    assert 120 <= len(readme.splitlines()) <= 150
