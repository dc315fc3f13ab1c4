"""The shipped recipes mean what they meant when each was one complete file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dualtoken.common.errors import UserError
from dualtoken.train.config.compose import RECIPES
from dualtoken.train.config.keys import default_of, defaults
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import Recipe, plain_recipe

ROOT = RECIPES.parents[1]
#: Of each recipe the dotted keys whose value is not the default, as they were before recipes were composed.
RECORDED: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "resolved_recipes.json").read_text()
)


@pytest.fixture(autouse=True)
def processor_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """What run.precision auto means is not the recipe's, but the machine's."""
    monkeypatch.setattr("dualtoken.train.config.run.has_fast_bf16", lambda: False)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested mappings that is not itself a mapping with keys."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{prefix}.{key}".lstrip("."))
    else:
        yield prefix, value.replace(f"{ROOT}/", "") if isinstance(value, str) else value


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_a_shipped_recipe_has_the_values_it_always_had(name: str) -> None:
    found = dict(leaves(plain_recipe(parse_recipe([name]))))
    recorded, default = RECORDED[name], dict(defaults(Recipe))
    if name == "nano_sft":  # its language model is that of the model that it starts from
        saved = json.loads((ROOT / "pretrained" / "nano" / "config.json").read_text())["text_config"]
        of_llm = {key: value for key, value in recorded.items() if key.startswith("mllm.llm.")}
        assert {key: saved[key.removeprefix("mllm.llm.")] for key in of_llm} == of_llm
        recorded = {key: value for key, value in recorded.items() if key not in of_llm}
    assert {key: found.get(key) for key in recorded} == recorded
    for key in found.keys() - recorded.keys():
        assert found[key] == default_of(key, default, missing=...), key


def test_every_shipped_recipe_was_recorded() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == set(RECORDED)


def _write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_recipes_are_laid_over_their_bases_and_over_one_another(tmp_path: Path) -> None:
    _write(
        tmp_path,
        base={"output": "a", "run": {"steps": 3}, "data": {"sources": {"one": {"path": "x", "weight": 2.0}}}},
        sizes={"optimizer": {"lr": 0.5, "group_lr": {"heads": 0.1}}},
        mine={"base": ["base.yaml", "sizes.yaml"], "mllm": {"llm": "a", "visual_tokenizer": "b"}},
        above={
            "output": "b",
            "optimizer": {"group_lr": {"llm": 0.2}},
            "data": {"sources": {"one": {"path": "y"}}},
        },
    )
    arguments = [str(tmp_path / "mine.yaml"), "--config", str(tmp_path / "above.yaml"), "--run.steps", "9"]
    recipe = parse_recipe(arguments)
    assert (recipe.output, recipe.run.steps, recipe.optimizer.lr) == ("b", 9, 0.5)
    assert recipe.optimizer.group_lr == {"heads": 0.1, "llm": 0.2}
    assert recipe.data.sources["one"].path == "y"
    assert recipe.data.sources["one"].weight == 2.0
    same = parse_recipe([f"--config={arguments[0]}", f"--config={arguments[2]}", "--run.steps=9"])
    assert same == recipe


def test_a_mapping_on_the_command_line_replaces_the_sources_and_a_key_changes_one() -> None:
    full = parse_recipe(["sft_qwen2.5_7b", "--data.sources", "{own: {path: codes/own}}"])
    assert list(full.data.sources) == ["own"]
    one = parse_recipe(["sft_qwen2.5_7b", "--data.sources.chat.weight", "0.2"])
    assert one.data.sources["chat"].weight == 0.2
    assert one.data.sources["questions"].weight == 0.5


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("nowhere.yaml", "'nowhere.yaml' is not a file"),
        (["mine.yaml"], "is its own base"),
        (3, "base is 3; give a path"),
        ([{"a": 1}], "give a path"),
        ("~nobody-of-this-name/x.yaml", "base"),
    ],
)
def test_a_base_that_cannot_be_read_is_one_line(base: object, reason: str, tmp_path: Path) -> None:
    folder = _write(tmp_path, mine={"base": base, "output": "x"})
    with pytest.raises(UserError, match=reason):
        parse_recipe([str(folder / "mine.yaml")])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--run.step", "5"], "'run.step'; did you mean 'steps'? allowed: "),
        (["--data.sources.own.wieght", "5"], "'data.sources.own.wieght'; did you mean 'weight'? allowed: "),
        (["--data.sources", "{own: {pth: x}}"], "'data.sources.own.pth'; did you mean 'path'? allowed: "),
        (["--mllm.lora.ranks=5"], "'mllm.lora.ranks'; did you mean 'rank'? allowed: "),
        (
            ["--mllm.llm", "{model_type: llama, hiden_size: 5}"],
            "'mllm.llm.hiden_size'; did you mean 'hidden_size'? ",
        ),
        (["--speed", "5"], "'speed'; did you mean 'seed'? allowed: "),
    ],
)
def test_an_unknown_key_at_any_depth_is_one_line(arguments: list[str], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe(["nano_sft", *arguments])
    assert str(caught.value).startswith(f"recipe: unknown key {reason}")
    assert "\n" not in str(caught.value)


def test_unknown_keys_of_siglip_configurations_are_one_line() -> None:
    for key in ("vision_config.patchsize", "text_config.hiden_size"):
        with pytest.raises(UserError, match=f"unknown key 'contrastive.{key}'; did you mean"):
            parse_recipe(["nano_contrastive", f"--contrastive.{key}", "8"])


def test_precision_auto_is_decided_by_the_machine_when_the_recipe_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert parse_recipe(["smollm2_135m_lora"]).run.precision == "fp32"
    monkeypatch.setattr("dualtoken.train.config.run.has_fast_bf16", lambda: True)
    assert parse_recipe(["smollm2_135m_lora"]).run.precision == "bf16_autocast"
    assert parse_recipe(["smollm2_135m_lora", "--run.precision", "fp32"]).run.precision == "fp32"


def test_every_fine_tuning_of_a_language_model_replays_text_and_asks_general_questions() -> None:
    tuned = [path.stem for path in RECIPES.glob("*.yaml") if "sft" in path.stem or "lora" in path.stem]
    for name in set(tuned) - {"nano_sft"}:  # nano's language model knows nothing but its data
        recipe = parse_recipe([name])
        weights = {key: source.weight for key, source in recipe.data.sources.items()}
        text = sum(weights.get(key, 0.0) for key in ("chat", "replies"))
        assert text / sum(weights.values()) >= 0.15, name
        assert recipe.validation is not None
        assert recipe.validation.general_questions == (recipe.run.zero_stage < 3), name
        rates = recipe.optimizer.group_lr
        assert min(rates["projectors"], rates["heads"]) > recipe.optimizer.lr, name
