"""Recipes composed of several files: the `base` files of a recipe, the recipe, and files given after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...common.errors import UserError, shown
from ...common.paths import user_path
from ...common.yaml_files import read_yaml

#: The recipes that the package ships.
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
#: The key of a recipe file that names the files it overrides: paths relative to the file, or shipped names.
BASE = "base"


def composed(files: Iterable[str | Path]) -> dict[str, Any]:
    """The settings of several recipe files and their bases; later ones win, mappings merge at all depths.

    Errors:
        UserError for a file that cannot be read, and for a file that is, directly or not, its own base.
    """
    settings: dict[str, Any] = {}
    for file in files:
        settings = merged(settings, _with_bases(recipe_file(file), ()))
    return settings


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings as one; where both hold a mapping these merge too, else the second one's value stands."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merged(old, value)
        result[key] = value
    return result


def recipe_file(given: str | Path) -> Path:
    """The file of a recipe that is given by its path, or by the name of one that the package ships."""
    path = user_path(given, "recipe")
    if path.exists():
        return path
    names = _shipped()
    if str(given) not in names:
        raise UserError(
            f"recipe {shown(given)} is not a file; give a YAML file, or one of {', '.join(sorted(names))}"
        )
    return names[str(given)]


def _shipped() -> dict[str, Path]:
    """The files of the recipes that the package ships, by name."""
    return {file.stem: file for folder in (RECIPES, RECIPES / "stages") for file in folder.glob("*.yaml")}


def _with_bases(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The settings of one file over those of its bases. above: the files that named this one."""
    if path in above:
        raise UserError(f"recipe {path} is its own {BASE}, by way of {above[-1]}")
    settings = read_yaml(path)
    bases = settings.pop(BASE, [])
    if not isinstance(bases, list):
        bases = [bases]
    result: dict[str, Any] = {}
    for base in bases:
        if not isinstance(base, str):
            raise UserError(f"recipe {path}: {BASE} is {shown(base)}; give a path, or a list of paths")
        file = path.parent / user_path(base, BASE)
        file = file if file.is_file() else _shipped().get(base, file)
        if not file.is_file():
            raise UserError(
                f"recipe {path}: {BASE} {shown(base)} is not a file; give a path relative to the recipe's "
                "folder, or the name of a shipped recipe"
            )
        result = merged(result, _with_bases(file.resolve(), (*above, path.resolve())))
    return merged(result, settings)
