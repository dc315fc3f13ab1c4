"""A hook of mkdocs: pages that are made from the package itself when the site is built, so none can be stale.

Commands from their `--help`, recipe keys from the dataclasses, Python names from docstrings (mkdocstrings),
the model card of nano, and the first-hour tutorial from its notebook.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import importlib
import json
import os
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docstring_parser import parse
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = Path(__file__).with_name("tutorials") / "first_hour.ipynb"
#: A page for the public names of each of these packages: those in its `__all__`, and these modules' contents.
PACKAGES: dict[str, tuple[str, ...]] = {
    "tokenizer": (),
    "mllm": (),
    "data_pipelines": ("convert.converter", "convert.registry"),
    "train": ("trainer", "config.reading", "config.recipe", "objectives.base", "callbacks.base"),
    "eval": (),
}
os.environ["COLUMNS"] = "100"  # the width of the help texts, whatever the terminal's is


def on_config(config: MkDocsConfig) -> None:
    """mkdocstrings reads the sources as the package `dualtoken`: a folder in which the root has that name."""
    link = ROOT / ".lint" / "dualtoken"
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to("..")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the generated pages, and the pictures of the notebook."""
    card = (ROOT / "pretrained/nano/README.md").read_text(encoding="utf-8")
    pages: dict[str, str | bytes] = {
        "reference/commands.md": commands_page(),
        "reference/recipes.md": recipes_page(),
        "explanation/nano_card.md": re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL),
        **{f"reference/python/{name}.md": python_page(name) for name in PACKAGES},
        **notebook_pages(NOTEBOOK),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))


def commands_page() -> str:
    """The help of every command and subcommand."""
    from dualtoken.scripts.cli import COMMANDS, command_parser, overview

    parts = ["# Commands", "What `dualtoken` and each command print for `--help`.", _block(overview())]
    for name, command in COMMANDS.items():
        parser = command_parser(
            importlib.import_module(f"dualtoken.scripts.{command.module}"), f"dualtoken {name}"
        )
        parts += [f"## {name}", _block(parser.format_help())]
        for word, one in _subcommands(parser):
            parts += [f"### {name} {word}", _block(one.format_help())]
    return "\n\n".join(parts) + "\n"


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def recipes_page() -> str:
    """Every key of a recipe, section by section, from the dataclasses and their docstrings."""
    from dualtoken.train.config.recipe import Recipe

    parts = [
        "# Recipe keys",
        "A recipe is a YAML file with these sections. Every key can be overridden on the command line "
        "(`--optimizer.lr 1e-4`); an unknown key is an error. "
        "`dualtoken train --recipe-help` prints them too.",
    ]
    return "\n\n".join([*parts, *_section(Recipe, "", {})]) + "\n"


def _section(kind: type, prefix: str, seen: dict[type, str]) -> list[str]:
    """Heading, text and table of one dataclass, then those inside it; `seen` has the path of each so far."""
    path = seen[kind] = prefix.rstrip(".")
    described = parse(kind.__doc__ or "")
    texts = {one.arg_name: one.description or "" for one in described.params}
    hints = typing.get_type_hints(kind)
    rows, inner = ["| key | type | default | meaning |", "|---|---|---|---|"], []
    for field in (one for one in dataclasses.fields(kind) if one.init):
        hint, inside = hints[field.name], f"{prefix}{field.name}"
        if typing.get_origin(hint) is dict:
            inside += ".NAME"
        text = " ".join(texts.get(field.name, "").split())
        for part in _dataclasses_in(hint):
            if part not in seen:
                inner += _section(part, f"{inside}.", seen)
            text = " ".join(filter(None, (text, f"See [`{seen[part]}`](#{_anchor(seen[part])}).")))
        cells = (f"`{field.name}`", _type_name(hint), _default(field), text)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    title = f"## `{path}` {{ #{_anchor(path)} }}" if path else "## The sections"
    text = "\n\n".join(filter(None, (described.short_description, described.long_description)))
    return [title, text, "\n".join(rows), *inner]


def _anchor(path: str) -> str:
    return path.replace(".", "-").lower()


def _dataclasses_in(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for part in typing.get_args(hint):
        yield from _dataclasses_in(part)


def _type_name(hint: Any) -> str:
    """A type in a few words; generic types as Python spells them."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in parts)
    if any(_dataclasses_in(hint)):
        return "sections by name" if typing.get_origin(hint) is dict else "section"
    if isinstance(hint, type) and not parts:
        return "null" if hint is type(None) else f"`{hint.__name__}`"
    return f"`{re.sub(r'(?:[a-zA-Z_]+[.])+', '', str(hint))}`"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{json.dumps(field.default, default=str)}`"
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        return "" if dataclasses.is_dataclass(value) else f"`{json.dumps(value, default=str)}`"
    return "required"


def python_page(name: str) -> str:
    """The public names of one package, which mkdocstrings fills from their docstrings."""
    package = importlib.import_module(f"dualtoken.{name}")
    (first, *rest) = (package.__doc__ or "").strip().split("\n\n")
    parts = [f"# `dualtoken.{name}`", first, *rest]
    parts += [f"::: dualtoken.{name}.{one}" for one in getattr(package, "__all__", ())]
    full = "    options:\n      show_root_full_path: true"
    parts += [f"::: dualtoken.{name}.{one}\n{full}" for one in PACKAGES[name]]
    return "\n\n".join(parts) + "\n"


def notebook_pages(path: Path) -> dict[str, str | bytes]:
    """A notebook as a page: its texts, its code, and the outputs that are stored in it."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    pages: dict[str, str | bytes] = {}
    parts: list[str] = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{path.stem}_{len(pages)}.png"
                pages[f"tutorials/{picture}"] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![output of the cell above]({picture})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(_block(text))
    return {f"tutorials/{path.stem}.md": "\n\n".join(parts) + "\n", **pages}
