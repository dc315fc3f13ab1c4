"""Imports run down the floors only, no two modules import each other, and all are relative.

* common ◀ tokenizer ◀ mllm ◀ data_pipelines ◀ train
* eval imports tokenizer, mllm and data_pipelines (held-out shards, the checker of scenes), never train
* scripts and benchmarks import any of these
* nothing imports scripts or tests

Imports inside functions and under `if TYPE_CHECKING:` count like all others: neither is a way around the
floors or around a circle. Only a package's `__init__.py`, which names its exports, is left out of circles.
"""

import ast
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LIBRARY = frozenset({"common", "tokenizer", "mllm", "data_pipelines", "train", "eval"})
# What each folder may import besides itself. A new folder has to be entered here.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "common": frozenset(),
    "tokenizer": frozenset({"common"}),
    "mllm": frozenset({"common", "tokenizer"}),
    "data_pipelines": frozenset({"common", "tokenizer", "mllm"}),
    "train": frozenset({"common", "tokenizer", "mllm", "data_pipelines"}),
    "eval": frozenset({"common", "tokenizer", "mllm", "data_pipelines"}),
    "benchmarks": LIBRARY,
    "examples": LIBRARY,
    "scripts": LIBRARY,
}
# The root's own files: setup.py runs without the package, __init__.py imports nothing.
ROOT_FILES_MAY_IMPORT: frozenset[str] = frozenset()
# Run or loaded as files (python benchmarks/quantizer.py), which have no package to be relative to.
RUN_AS_FILES = {"benchmarks", "examples"}
NOT_PACKAGE = {"tests", "docs", "build", "dist", "pretrained"}


@dataclass(frozen=True)
class Import:
    """One import statement's target: a top folder of the package ("" is the root's `__init__.py`)."""

    line: int
    target: str
    absolute: bool


def source_files(root: Path) -> Iterator[Path]:
    """The package's Python files, relative to `root`; hidden folders, tests and build products left out."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative.parts[0] not in NOT_PACKAGE and not any(part.startswith(".") for part in relative.parts):
            yield relative


def package_imports(source: str, relative: Path) -> Iterator[Import]:
    """Every import in `source` that stays inside the package, those within functions and `if` included."""
    here = list(relative.parts[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.ImportFrom):
            depth = len(here) - (node.level - 1)
            assert depth >= 0, f"{relative}:{node.lineno} imports from above the package"
            base = here[:depth] + (node.module.split(".") if node.module else [])
            targets = [base[0]] if base else [alias.name for alias in node.names]
            for target in targets:
                folder = target if (ROOT / target).is_dir() or target in MAY_IMPORT else ""
                yield Import(node.lineno, folder, absolute=False)
            continue
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "dualtoken":
                yield Import(node.lineno, rest.split(".")[0], absolute=True)
            elif first in MAY_IMPORT or first == "tests":
                yield Import(node.lineno, first, absolute=True)


def violations(source: str, relative: Path) -> list[str]:
    """The forbidden imports of one file, as `path:line: what is wrong`."""
    folder = relative.parts[0] if len(relative.parts) > 1 else ""
    if folder and folder not in MAY_IMPORT:
        return [f"{relative}: the folder {folder} is not in MAY_IMPORT"]
    allowed = MAY_IMPORT[folder] | {folder, ""} if folder else ROOT_FILES_MAY_IMPORT
    found = []
    for item in package_imports(source, relative):
        if item.absolute and folder not in RUN_AS_FILES:
            found.append(f"{relative}:{item.line}: absolute import of {item.target or 'dualtoken'}")
        elif item.target not in allowed:
            found.append(f"{relative}:{item.line}: {folder or 'the root'} must not import {item.target}")
    return found


def module_of(relative: Path) -> str:
    """The dotted name of a file, without the package's name; a package's `__init__.py` is the package."""
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def module_imports(source: str, relative: Path, modules: Collection[str]) -> set[str]:
    """The modules that one file imports by relative imports, wherever they stand in it."""
    package = relative.parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [
                *package[: len(package) - node.level + 1],
                *(node.module.split(".") if node.module else []),
            ]
            for alias in node.names:
                submodule = ".".join([*base, alias.name])
                found.add(submodule if submodule in modules else ".".join(base))
    return found & set(modules) - {module_of(relative)}


def circles(sources: Mapping[Path, str]) -> list[str]:
    """Groups of modules that import each other, directly or through others, as `a -> b -> a`."""
    modules = {module_of(path) for path in sources}
    graph = {
        module_of(path): module_imports(source, path, modules)
        for path, source in sources.items()
        if path.name != "__init__.py"
    }
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return [" -> ".join(reversed(error.args[1]))]
    return []


def test_imports_follow_the_order():
    files = list(source_files(ROOT))
    assert Path("scripts/cli.py") in files
    found = [text for path in files for text in violations((ROOT / path).read_text(encoding="utf-8"), path)]
    assert not found, "\n".join(found)


def test_no_two_modules_import_each_other():
    sources = {path: (ROOT / path).read_text(encoding="utf-8") for path in source_files(ROOT)}
    assert not circles(sources)


@pytest.mark.parametrize(
    "back",
    [
        "from .a import f",
        "def g():\n    from .a import f",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import f",
        "from . import a",
        "from ..mllm import a",
    ],
)
def test_a_circle_is_found(back: str):
    sources = {"mllm/a.py": "from .b import g", "mllm/b.py": "from .deep.c import h", "mllm/deep/c.py": ""}
    assert circles({Path(name): text for name, text in sources.items()}) == []
    sources["mllm/b.py"] = back
    assert circles({Path(name): text for name, text in sources.items()}) in (
        ["mllm.a -> mllm.b -> mllm.a"],
        ["mllm.b -> mllm.a -> mllm.b"],
    )


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("common/x.py", "from ..tokenizer import DualTokenizer"),
        ("tokenizer/x.py", "from ..mllm import DualTokenPipeline"),
        ("tokenizer/x.py", "from ..mllm.losses import a"),
        ("tokenizer/x.py", "from .. import mllm"),
        ("tokenizer/deep/x.py", "from ...mllm import a"),
        ("mllm/x.py", "def f():\n    from ..data_pipelines import records"),
        ("mllm/x.py", "if TYPE_CHECKING:\n    from ..train import config"),
        ("eval/x.py", "from ..train import config"),
        ("train/x.py", "from ..scripts.options import integer"),
        ("scripts/x.py", "from ..tests import conftest"),
        ("scripts/x.py", "from tests import conftest"),
        ("mllm/x.py", "from dualtoken.tokenizer import DualTokenizer"),
        ("mllm/x.py", "import dualtoken"),
        ("mllm/x.py", "import tokenizer.codebook"),
        ("setup.py", "from .tokenizer import DualTokenizer"),
        ("__init__.py", "from . import mllm"),
        ("new_folder/x.py", "import os"),
    ],
)
def test_a_wrong_import_is_found(path: str, source: str):
    assert violations(source, Path(path))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tokenizer/x.py", "from .codebook import Codebook\nfrom ..common import errors"),
        ("train/objectives/x.py", "from ...tokenizer import DualTokenizer\nfrom ..config import Recipe"),
        ("scripts/x.py", "from .. import __version__\nfrom ..train import config\nfrom .options import a"),
        ("mllm/x.py", "import tokenizers\nfrom datasets import load_dataset\nimport torch"),
    ],
)
def test_a_right_import_is_passed(path: str, source: str):
    assert violations(source, Path(path)) == []
