"""Limits that keep the code readable: short files, short functions, calls that name their arguments."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "common", "data_pipelines", "eval", "mllm", "scripts", "tokenizer", "train")
LINES_OF_A_FILE = 350
LINES_OF_A_FUNCTION = 60
POSITIONAL_ARGUMENTS = 6


def too_long(source: str, name: str) -> Iterator[str]:
    """What goes beyond the limits in one file, as `name:line: what`."""
    lines = source.count("\n")
    if lines > LINES_OF_A_FILE:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LINES_OF_A_FUNCTION:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines"
        elif isinstance(node, ast.Call) and len(node.args) > POSITIONAL_ARGUMENTS:
            yield f"{name}:{node.lineno}: a call with {len(node.args)} positional arguments"


def test_files_functions_and_calls_are_short() -> None:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 200
    found = [
        problem
        for path in paths
        for problem in too_long(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("\n" * 351, "x.py: 351 lines"),
        ("def f():\n" + "    a = 1\n" * 60, "x.py:1: f has 61 lines"),
        ("f(1, 2, 3, 4, 5, 6, 7)\n", "x.py:1: a call with 7 positional arguments"),
    ],
)
def test_what_is_too_long_is_found(source: str, problem: str) -> None:
    assert list(too_long(source, "x.py")) == [problem]


@pytest.mark.parametrize("source", ["\n" * 350, "def f():\n" + "    a = 1\n" * 59, "f(1, 2, 3, 4, 5, 6)\n"])
def test_what_is_short_enough_passes(source: str) -> None:
    assert list(too_long(source, "x.py")) == []
