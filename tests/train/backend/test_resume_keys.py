"""Every key of a recipe says what its change means for a run that resumes; nothing is ignored."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dualtoken.common.errors import UserError
from dualtoken.mllm.assembly.adapters import LoraSettings
from dualtoken.mllm.settings import ModelSettings
from dualtoken.scripts.cli import run_command
from dualtoken.scripts.train import _parted
from dualtoken.train.backend import resume
from dualtoken.train.backend.checkpoint_files import STATE
from dualtoken.train.backend.resume import allowed_changes
from dualtoken.train.backend.resume_keys import RULES, Rule, rule_of
from dualtoken.train.config.contrastive import ContrastiveConfig
from dualtoken.train.config.data import DataConfig, SourceConfig
from dualtoken.train.config.mllm import MllmObjectiveConfig
from dualtoken.train.config.recipe import Recipe, plain_recipe
from dualtoken.train.config.run import RunConfig
from dualtoken.train.config.tokenizer import AdversarialConfig, TokenizerObjectiveConfig
from dualtoken.train.config.validation import ValidationConfig
from dualtoken.train.stream import Stream
from dualtoken.train.trainer import train

from ..conftest import Chain
from ..test_stream import PACKED, alone, parse_recipe


def schema_keys(section: type, path: str = "") -> Iterator[str]:
    """Every dotted key of a dataclass; the names of sources are "*"."""
    hints = typing.get_type_hints(section)
    for one in fields(section):
        name, hint = f"{path}.{one.name}".lstrip("."), hints[one.name]
        inner = [
            kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)
        ]
        if inner:
            yield from schema_keys(inner[0], f"{name}.*" if typing.get_origin(hint) is dict else name)
        else:
            yield name


KEYS = list(dict.fromkeys(schema_keys(Recipe)))


def a_recipe(kind: str) -> Recipe:
    """A recipe in which every key of one objective is set."""
    sections: dict[str, Any] = {
        "contrastive": ContrastiveConfig({"hidden_size": 8}, {"hidden_size": 8}, "text"),
        "tokenizer": TokenizerObjectiveConfig("teacher", adversarial=AdversarialConfig()),
        "mllm": MllmObjectiveConfig(
            "llm", "visual", text_tokenizer="text", model=ModelSettings(), lora=LoraSettings()
        ),
    }
    validation = ValidationConfig(5, {"held": SourceConfig("held-out")}) if kind != "tokenizer" else None
    data = DataConfig({"chat": SourceConfig("data")})
    section = {kind: sections[kind]}
    return Recipe("out", data, RunConfig(10), validation=validation, init_from="start", **section)


RECIPES = {kind: a_recipe(kind) for kind in ("contrastive", "tokenizer", "mllm")}


def holder(key: str) -> Recipe:
    return RECIPES.get(key.split(".")[0], RECIPES["mllm"])


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a checkpoint of a recipe with another value of a key."""
    (tmp_path / STATE).write_text(json.dumps({"step": 3, "world_size": 1, "data": {"chat": "a" * 64}}))

    def make(recipe: Recipe, key: str = "", value: Any = None) -> Path:
        plain = plain_recipe(recipe)
        *sections, name = key.split(".")
        inner = plain
        for section in sections:
            inner = inner[section]
        if key:
            assert name in inner
            inner[name] = value
        monkeypatch.setattr(resume, "written_recipe", lambda folder: plain)
        return tmp_path

    return make


def test_every_key_is_listed_and_no_other() -> None:
    """A new key of the recipe must say what its change means for a run that resumes."""
    within = {key for key in RULES if key.startswith("run.deepspeed.")}
    assert set(RULES) - within == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_change_of_every_key_is_applied_or_refused(key: str, checkpoint: Any) -> None:
    """What is fixed is named with both values, and can be allowed by name."""
    recipe, named = holder(key), key.replace("*", "held" if "validation" in key else "chat")
    mapping = key.endswith("_config")  # the changed key is then one of the mapping
    folder = checkpoint(recipe, f"{named}.hidden_size" if mapping else named, "another value")
    data = {"chat": "a" * 64}
    if RULES[key] is Rule.FREE or key == "data.sources.*.path":  # the records have the same digest
        changed = allowed_changes(folder, recipe, data)
        assert [change.key for change in changed] == ([] if key == "output" else [named])
        return
    with pytest.raises(UserError, match="another value") as refused:
        allowed_changes(folder, recipe, data)
    assert named in str(refused.value)
    for name in (named, named.rpartition(".")[0] or named, f"{named[:-1]}*"):
        (change,) = allowed_changes(folder, recipe, data, [name])
        assert change.key.startswith(named)
        assert change.before == "another value"
    with pytest.raises(UserError, match="not a key"):
        allowed_changes(folder, recipe, data, [named, "data.nothing"])


def test_nothing_changed_is_nothing_said(checkpoint: Any) -> None:
    for recipe in RECIPES.values():
        assert allowed_changes(checkpoint(recipe), recipe, {"chat": "a" * 64}) == []


def test_other_records_need_the_name_of_their_source(checkpoint: Any) -> None:
    recipe = RECIPES["mllm"]
    folder, data = checkpoint(recipe), {"chat": "b" * 64}
    with pytest.raises(UserError, match=r"records of data\.sources\.chat"):
        allowed_changes(folder, recipe, data)
    (change,) = allowed_changes(folder, recipe, data, ["data.sources.chat"])
    assert str(change) == "data.sources.chat.path (records) bbbbbbbb (was aaaaaaaa)"


@pytest.mark.parametrize(
    ("key", "rule"),
    [
        ("data.sources.a.b.weight", Rule.FIXED),
        ("mllm.llm.hidden_size", Rule.FIXED),  # a mapping has not moved
        ("mllm.lora", Rule.FIXED),
        ("validation", Rule.FREE),
        ("validation.sources.held.path", Rule.FREE),
        ("run.deepspeed.zero_optimization.reduce_bucket_size", Rule.FREE),
        ("run.deepspeed.zero_optimization.sub_group_size", Rule.FIXED),
        ("of.another.version", Rule.FIXED),
    ],
)
def test_sections_and_keys_within_mappings_have_rules(key: str, rule: Rule) -> None:
    assert rule_of(key) is rule


def test_the_option_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    option = "--resume-with-changes"
    words = ["x.yaml", option, "seed,data", "--run.steps", "3", f"{option}=mllm"]
    assert _parted(words) == (["x.yaml", "--run.steps", "3"], ["seed,data", "mllm"])
    asked: list[Any] = []
    monkeypatch.setattr("dualtoken.train.config.reading.parse_recipe", lambda words: RECIPES["mllm"])
    monkeypatch.setattr(train.__module__ + ".train", lambda recipe, named: asked.append(named))
    assert run_command("train", [option, "seed", *words]) == 0
    assert asked == [["seed", "seed", "data", "mllm"]]
    assert run_command("train", ["x.yaml", option]) == 2
    assert "needs keys" in capsys.readouterr().err


@pytest.mark.parametrize(("before", "now"), [(PACKED, 200), (PACKED, 0), ((), 256)])
def test_rows_that_are_packed_anew_begin_with_draws_that_were_not_delivered(
    before: tuple[str, ...], now: int, chain: Chain, tmp_path: Path
) -> None:
    def stream(*options: str) -> Stream:
        return Stream.open(parse_recipe([*chain.recipe("mllm", tmp_path / "x"), *options]), alone())

    packed = ("--data.pack_length", str(now), "--data.pack_window", "10", "--data.sort_window", "1")
    first, resumed = stream(*before), stream(*packed) if now else stream()
    state = first.state_dict()
    if before:
        state["cursors"] = [[2, 1]]
        with pytest.raises(UserError, match="must pack as before"):
            resumed.load_state_dict(state)
    resumed.may_repack = True
    resumed.load_state_dict(state)
    if not before:
        resumed.run(SimpleObjective(), start=33)
    if now:
        assert resumed._plan.first == (5 if before else 4)  # of 3 windows of 16, or 33 records
    assert resumed._cursor == stream()._cursor


class SimpleObjective:
    """What a stream needs of an objective before its first batch."""

    collate_packed = None
    examples = SimpleNamespace(prepare=None, prepare_pieces=print)
