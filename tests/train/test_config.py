"""Recipes are read strictly: a mistake is named before anything is loaded."""

from pathlib import Path

import pytest
import yaml

from dualtoken.tokenizer.errors import UserError
from dualtoken.train.config import Recipe, parse_recipe, save_resolved

RECIPES = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = parse_recipe([str(path)])
    assert isinstance(recipe, Recipe)
    save_resolved(recipe, tmp_path / "resolved.yaml")
    assert parse_recipe([str(tmp_path / "resolved.yaml")]) == recipe


def test_command_line_overrides_the_file() -> None:
    recipe = parse_recipe([str(RECIPES[0]), "--run.steps", "7", "--optimizer.lr", "0.5"])
    assert (recipe.run.steps, recipe.optimizer.lr) == (7, 0.5)


def _changed(tmp_path: Path, **changes: object) -> str:
    content = {**yaml.safe_load(RECIPES[0].read_text()), **changes}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="speed"):
        parse_recipe([_changed(tmp_path, speed="fast")])
    with pytest.raises(UserError, match="learning_rate"):
        parse_recipe([_changed(tmp_path, optimizer={"learning_rate": 1e-3})])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"contrastive": None, "tokenizer": None, "mllm": None}, "exactly one"),
        ({"run": {"steps": 0}}, "run.steps"),
        ({"run": {"steps": 5, "zero_stage": 4}}, "zero_stage"),
        ({"run": {"steps": 5, "precision": "bf16"}}, "bf16"),
        ({"data": {"sources": {}}}, "sources"),
        ({"data": {"sources": {"a": {"path": "x", "weight": 0}}}}, "weight"),
    ],
)
def test_impossible_recipes_say_what_is_wrong(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        parse_recipe([_changed(tmp_path, **changes)])


def test_a_recipe_that_is_no_file_is_named() -> None:
    with pytest.raises(UserError, match="nowhere"):
        parse_recipe(["nowhere.yaml"])
