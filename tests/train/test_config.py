"""Recipes are read strictly: a mistake is named before anything is loaded."""

from pathlib import Path

import pytest
import torch
import yaml

from dualtoken.common.errors import UserError
from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig
from dualtoken.train.config import Recipe, parse_recipe, save_resolved

FOLDER = Path(__file__).parents[2] / "train" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
STAGES = sorted((FOLDER / "stages").glob("*.yaml"))
# What the backbones of the large recipes are, because their hub folders are not at hand.
SIGLIP = {
    "so400m_384_rvq8": {"hidden_size": 1152, "num_hidden_layers": 27, "image_size": 384, "patch_size": 14},
    "so400m_256_rvq4": {"hidden_size": 1152, "num_hidden_layers": 27, "image_size": 256, "patch_size": 16},
    "base_256_rvq4": {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 256, "patch_size": 16},
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    recipe = parse_recipe([str(path)])
    assert isinstance(recipe, Recipe)
    save_resolved(recipe, tmp_path / "resolved.yaml")
    assert parse_recipe([str(tmp_path / "resolved.yaml")]) == recipe


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", SIGLIP)
def test_stages_lie_over_every_tokenizer(name: str, stage: Path) -> None:
    whole = parse_recipe([str(FOLDER / f"{name}.yaml")]).tokenizer
    staged = parse_recipe([str(FOLDER / f"{name}.yaml"), "--config", str(stage)]).tokenizer
    assert whole is not None
    assert staged is not None
    assert whole.adversarial is not None
    assert staged.adversarial is None
    assert staged.trained
    assert staged.model == whole.model


@pytest.mark.parametrize("name", SIGLIP)
def test_large_tokenizers_fit_their_backbones(name: str) -> None:
    recipe = parse_recipe([str(FOLDER / f"{name}.yaml")])
    assert recipe.tokenizer is not None
    heads = {"num_attention_heads": 16 if SIGLIP[name]["hidden_size"] == 1152 else 12}
    text = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 100}
    vision = {**SIGLIP[name], **heads, "intermediate_size": 128}
    config = DualTokenizerConfig(vision_config=vision, text_config=text, **recipe.tokenizer.model)
    with torch.device("meta"):
        model = DualTokenizer(config)
    assert config.grid_size == (config.image_size // SIGLIP[name]["patch_size"],) * 2
    assert model.pixel_quantizer.codebooks.vectors.shape == (1, 16384, 32)


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
        ({"run": {"steps": 5, "zero_stage": 1}, "optimizer": {"muon_lr": 0.02}}, "gradient_clipping 0"),
        (
            {"run": {"steps": 5, "zero_stage": 3}, "optimizer": {"muon_lr": 0.02, "gradient_clipping": 0.0}},
            "zero_stage 0, 1 or 2",
        ),
        ({"run": {"steps": 5, "zero_stage": 3}}, "zero_stage 3 is for the unified model"),
        ({"run": {"steps": 5, "offload": "optimizer"}}, "offload optimizer needs run.zero_stage"),
        ({"run": {"steps": 5, "zero_stage": 2, "offload": "all"}}, "offload all needs run.zero_stage 3"),
        ({"run": {"steps": 5, "spike_factor": 0.5}}, "spike_factor"),
        ({"run": {"steps": 5, "timeout_minutes": 0}}, "timeout_minutes"),
        ({"schedule": {"kind": "wsd", "decay_share": 2.0}}, "decay_share"),
        ({"validation": {"every": 5}}, "neither sources nor prompts"),
        ({"validation": {"every": 5, "prompts": ["a circle"]}}, "only it draws"),
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
