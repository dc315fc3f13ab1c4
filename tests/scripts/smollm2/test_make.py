"""The comparison of fine-tunings of a published language model: its mixtures, paths, steps and table."""

import argparse
import json
from pathlib import Path

import pytest
import yaml

from dualtoken.scripts.smollm2 import make
from dualtoken.train.config.reading import parse_recipe


def arguments(runs: Path, *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    make.add_arguments(parser)
    return parser.parse_args(["--runs", str(runs), *words])


@pytest.mark.parametrize("name", make.VARIANTS)
def test_a_mixture_has_its_share_of_text_and_images_in_the_recipes_proportions(name, tmp_path):
    variant = make.VARIANTS[name]
    words = make.mixture(tmp_path, variant)
    recipe = parse_recipe([f"smollm2_135m_{variant.recipe}", *words])
    weights = {key: one.weight for key, one in recipe.data.sources.items()}
    assert weights.get("replies", 0.0) == pytest.approx(variant.text)
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-3)
    assert weights["scenes_drawn"] / weights["easyvqa"] == pytest.approx(2.0, abs=1e-2)
    for one in recipe.data.sources.values():
        assert Path(one.path).is_relative_to(tmp_path)


def test_every_training_command_is_a_recipe_that_can_be_read(tmp_path, monkeypatch):
    run: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(make, "run_process", lambda module, words: run.append((module, words)))
    monkeypatch.setattr(make, "build_start", lambda args: None)
    given = ("--steps", "7", "--pretrain-steps", "3", "--llm", "some/model.gguf", "--only", "lora_text0,sft")
    for step in make.steps(arguments(tmp_path, *given), ["lora_text0", "sft"]):
        step.make()
    recipes = [parse_recipe(words) for module, words in run if module == "train"]
    assert [recipe.run.steps for recipe in recipes] == [3, 7, 7]
    assert [Path(recipe.output) for recipe in recipes] == [
        tmp_path / name for name in ("pretrain", "lora_text0", "sft")
    ]
    assert recipes[0].mllm.llm == "some/model.gguf"
    assert [recipe.init_from for recipe in recipes[1:]] == [str(tmp_path / "pretrain" / "model")] * 2
    made = {
        Path(words[words.index("--output") + 1]) for module, words in run if module in ("prepare", "tokenize")
    }
    for recipe in recipes:
        assert {Path(one.path) for one in recipe.data.sources.values()} <= made
    assert sum(module == "smollm2.evaluate" for module, _ in run) == 4


def test_the_table_has_a_row_for_every_evaluation(tmp_path):
    found = {
        "general": 90.0,
        "scenes": 12.34,
        "easyvqa": None,
        "one_object": {"correct": 0.0, "colour": 50.0},
    }
    for name in ("start", "lora"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps(found))
    (tmp_path / "lora" / "log.jsonl").write_text('{"step": 5}\n{"step": 10}\n')
    assert make.table(tmp_path).splitlines()[2:] == [
        "| untrained | 0 | 90.0 % | 12.3 % | – | 0.0 % | 50.0 % |",
        "| adapters, 30 % text | 10 | 90.0 % | 12.3 % | – | 0.0 % | 50.0 % |",
    ]


def test_the_recipes_name_the_hub_id_and_the_shipped_tokenizer():
    pretrain = yaml.safe_load((make.RECIPES / "smollm2_135m_pretrain.yaml").read_text())
    assert pretrain["mllm"]["llm"] == make.HUB_ID
    assert pretrain["mllm"]["visual_tokenizer"] == "pretrained/nano/visual_tokenizer"
