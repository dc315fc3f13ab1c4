"""Recipes are read strictly: a mistake is named before anything is loaded."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.common.errors import UserError
from dualtoken.common.limits import in_range, limited, number_kind, numbers
from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig
from dualtoken.train.config.compose import composed
from dualtoken.train.config.data import SourceConfig
from dualtoken.train.config.keys import build
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import Recipe, save_resolved
from dualtoken.train.config.run import RunConfig
from dualtoken.train.config.validation import ValidationConfig

FOLDER = Path(__file__).parents[3] / "train" / "recipes"
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
    full = parse_recipe([str(FOLDER / f"{name}.yaml")]).tokenizer
    staged = parse_recipe([str(FOLDER / f"{name}.yaml"), "--config", str(stage)]).tokenizer
    assert full is not None
    assert staged is not None
    assert full.adversarial is not None
    assert staged.adversarial is None
    assert staged.trained
    assert staged.model == full.model


@pytest.mark.parametrize("name", SIGLIP)
def test_large_tokenizers_fit_their_backbones(name: str) -> None:
    recipe = parse_recipe([str(FOLDER / f"{name}.yaml")])
    assert recipe.tokenizer is not None
    heads = {"num_attention_heads": 16 if SIGLIP[name]["hidden_size"] == 1152 else 12}
    text = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 100}
    vision = {**SIGLIP[name], **heads, "intermediate_size": 128}
    config = DualTokenizerConfig(vision_config=vision, text_config=text, **vars(recipe.tokenizer.model))
    with torch.device("meta"):
        model = DualTokenizer(config)
    assert config.grid_size == (config.image_size // SIGLIP[name]["patch_size"],) * 2
    assert model.pixel_quantizer.codebooks.vectors.shape == (1, 16384, 32)


def test_command_line_overrides_the_file() -> None:
    recipe = parse_recipe([str(RECIPES[0]), "--run.steps", "7", "--optimizer.lr", "0.5"])
    assert (recipe.run.steps, recipe.optimizer.lr) == (7, 0.5)


def _changed(tmp_path: Path, **changes: object) -> str:
    content = {**composed([RECIPES[0]]), **changes}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="speed"):
        parse_recipe([_changed(tmp_path, speed="fast")])
    with pytest.raises(UserError, match="learning_rate"):
        parse_recipe([_changed(tmp_path, optimizer={"learning_rate": 1e-3})])
    with pytest.raises(UserError, match=r"^recipe: unknown key 'mllm\.lora\.ranks'; did you mean 'rank'\?"):
        parse_recipe(["nano_sft", "--mllm.lora", "{ranks: 3}"])
    with pytest.raises(UserError, match=r"^recipe: mllm\.prompt_dropout: Expected a number\. Got value: x$"):
        parse_recipe(["nano_sft", "--mllm.prompt_dropout", "x"])


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
        ({"validation": {"every": 5}}, "neither sources nor prompts nor general_questions"),
        ({"validation": {"every": 5, "prompts": ["a circle"]}}, "only it generates images"),
        ({"data": {"sources": {}}}, "sources"),
        ({"data": {"sources": {"a": {"path": "x", "weight": 0}}}}, "weight"),
    ],
)
def test_impossible_recipes_say_what_is_wrong(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=named):
        parse_recipe([_changed(tmp_path, **changes)])


def test_a_long_list_of_allowed_keys_holds_complete_names() -> None:
    with pytest.raises(UserError, match=r"^recipe: unknown key 'run\.zzz'; allowed: async_save, ") as caught:
        parse_recipe(["nano_sft", "--run", "{zzz: 1}"])
    *listed, last = str(caught.value).partition("allowed: ")[2].split(", ")
    assert last == "…"
    assert set(listed) <= {one.name for one in dataclasses.fields(RunConfig)}


def test_a_base_may_be_a_shipped_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: nano_sft\nrun: {steps: 7}")
    assert parse_recipe([str(path)]) == parse_recipe(["nano_sft", "--run.steps", "7"])
    path.write_text("base: nano_sfft")
    with pytest.raises(
        UserError, match=r"base 'nano_sfft' is not a file; give a path relative to the recipe's"
    ):
        parse_recipe([str(path)])


def test_a_section_that_is_not_a_mapping_is_named(tmp_path: Path) -> None:
    for value, named in ((3, "3"), (None, "null"), ([1], r"\[1\]")):
        with pytest.raises(UserError, match=f"^recipe: run is {named}; expected settings by name$"):
            parse_recipe([_changed(tmp_path, run=value)])


def test_a_recipe_that_is_not_a_file_is_named() -> None:
    with pytest.raises(UserError, match="nowhere"):
        parse_recipe(["nowhere.yaml"])


def _without_range(section: type, prefix: str = "") -> list[str]:
    """The numeric fields of a dataclass, and of all dataclasses in it, that have no range."""
    found = []
    for field in dataclasses.fields(section):
        hint, name = get_type_hints(section)[field.name], f"{prefix}{field.name}"
        if number_kind(hint) is not None and "limits" not in field.metadata:
            found.append(name)
        for inner in _dataclasses(hint):
            found += _without_range(inner, f"{name}.")
    return found


def _dataclasses(hint: Any) -> list[type]:
    """The dataclasses in a type hint."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [found for argument in get_args(hint) for found in _dataclasses(argument)]


@dataclasses.dataclass
class _Inner:
    free: int | None = None
    share: float = limited(0.5, least=0.0, below=1.0)


@dataclasses.dataclass
class _Outer:
    rates: dict[str, float] = dataclasses.field(default_factory=dict, metadata=in_range(above=0.0))
    pair: tuple[float, float] = limited((0.1, 0.2), least=0.0, most=1.0)
    maybe: float | None = limited(None, least=0.0)
    named: dict[str, _Inner] = dataclasses.field(default_factory=dict)


def test_a_number_without_a_range_is_found() -> None:
    assert _without_range(_Outer) == ["named.free"]


def test_every_number_of_a_recipe_has_a_range() -> None:
    assert _without_range(Recipe) == []


def _full_recipe() -> Recipe:
    """A recipe with a value for every numeric key outside the sections of the other objectives."""
    recipe = parse_recipe(["nano_sft"])
    source = SourceConfig("x", max_repeats=2.0)
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, sources={"own": source, "more": SourceConfig("y")}),
        optimizer=dataclasses.replace(recipe.optimizer, muon_lr=0.02, lr_scale={"bias": 2.0}),
        run=dataclasses.replace(recipe.run, weight_average=0.9, spike_factor=0.0),
        validation=ValidationConfig(5, {"held": source}, guidance_scale=1.0),
    )


def _with(section: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy of nested dictionaries with `value` at a dotted key."""
    first, _, rest = key.partition(".")
    old = section[first]
    if not rest and isinstance(old, tuple):
        value = (value, *old[1:])
    return {**section, first: _with(old, rest, value) if rest else value}


def _recipes_with_all_sections() -> list[Recipe]:
    adversarial = parse_recipe(["so400m_384_rvq8"])
    return [_full_recipe(), parse_recipe(["nano_contrastive"]), adversarial]


def test_no_bad_number_of_any_key_passes() -> None:
    seen = set()
    for recipe in _recipes_with_all_sections():
        for key, limits, kind, _ in numbers(recipe):
            bad: list[object] = [float("nan"), float("inf"), float("-inf"), True, "3", 10**400, -1e300]
            bad += [0.5] if kind is int else []
            bad += [limits.least - 1, limits.most + 1] if kind is int else []
            for value in bad:
                with pytest.raises(UserError) as caught:
                    build(Recipe, _with(recipe.as_dict(), key, value))
                assert key in str(caught.value)
                assert len(str(caught.value)) <= 300
            seen.add(key)
    for key in ("optimizer.lr", "optimizer.betas", "optimizer.eps", "schedule.final_ratio", "mllm.lora.rank"):
        assert key in seen
    assert {"tokenizer.adversarial.lr", "contrastive.patch_weight", "data.sources.own.max_repeats"} <= seen


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.lr", "-1"),
        ("optimizer.betas", "[2, 3]"),
        ("optimizer.eps", "-1"),
        ("optimizer.gradient_clipping", "-1"),
        ("schedule.warmup_steps", "-5"),
        ("schedule.final_ratio", "-1"),
        ("data.num_workers", "-1"),
        ("data.micro_batch_size", "1000000"),
        ("data.sources.own.weight", ".nan"),
        ("run.save_every", "-1"),
        ("seed", "-1"),
        ("run.steps", "9" * 5000),
        ("optimizer.lr", "1e999"),
        ("output", ""),
        ("init_from", "~nobody-of-this-name/x"),
    ],
)
def test_a_bad_override_is_one_line(key: str, value: str) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.").split("\\.")[0]) as caught:
        parse_recipe(["nano_sft", f"--{key}", value])
    assert len(str(caught.value)) <= 300


HOSTILE = {
    "a list": b"- a",
    "empty": b"",
    "a number": b"3",
    "not UTF-8": b"\xff\xfe\0\1",
    "a zero byte": b"a: \0",
    "nested": b"a: " + b"[" * 100_000,
    "code": b"output: !!python/object/apply:os.abort []",
    "growing": b"a0: &a0 [x]\n"
    + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n + 1, n + 1, n, n) for n in range(60)),
    "itself": b"output: &a [*a]",
    "not closed": b"output: {a",
    "keys of numbers": b"1: 2",
    "a key of a list": b"? [a]\n: b",
    "an unknown anchor": b"<<: *x",
    "sections of other kinds": b"output: x\nrun: [1]\ndata: 3",
    "a date": b"output: 2020-01-01\nrun: {steps: 2020-01-01}\ndata: {sources: {}}",
    "another recipe": b"config: nowhere.yaml\noutput: x",
    "a source of null": b"output: x\nrun: {steps: 1}\ndata: {sources: {a: null}}",
    "too big": b"#" * 1_100_000,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_recipe_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        parse_recipe([str(tmp_path / "recipe.yaml")])
    assert len(str(caught.value)) <= 300


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_recipe_with_any_value_anywhere_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = yaml.safe_load((FOLDER / "nano_sft.yaml").read_text())
    section = content
    while isinstance(section, dict) and section and data.draw(st.booleans()):
        parent, key = section, data.draw(st.sampled_from(sorted(section)))
        section = parent[key]
        replaced = (parent, key)
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    value = data.draw(
        scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=3), scalars, max_size=2)
    )
    parent, key = replaced if section is not content else (content, "run")
    parent[key] = value
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(UserError):
        parse_recipe([str(path)])


@pytest.mark.parametrize("given", ["/dev/zero", ".", "x" * 5000, "a\0b", "", "nano_mlm"])
def test_what_cannot_be_a_recipe_is_one_line(given: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe([given])
    assert len(str(caught.value)) <= 300


def test_recipes_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = parse_recipe(["nano_sft", "--run.steps", "3"])
    assert recipe.run.steps == 3
    assert recipe.init_from is not None
    assert Path(recipe.init_from).is_dir()  # the model that the package brings
    with pytest.raises(UserError, match="nano_mllm"):
        parse_recipe(["nano_mlm"])


def test_home_is_expanded_wherever_a_recipe_names_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    changes = {
        "output": "~/run",
        "init_from": "~/model",
        "mllm.visual_tokenizer": "~/tokenizer",
        "mllm.text_tokenizer": "~/text",
        "mllm.llm": "~/llm",
        "data.sources": "{own: {path: ~/codes}}",
        "validation": "{every: 5, sources: {held: {path: ~/held}}}",
    }
    recipe = parse_recipe(
        ["nano_sft", *(word for key, value in changes.items() for word in (f"--{key}", value))]
    )
    assert "~" not in str(recipe.as_dict())
    assert recipe.data.sources["own"].path == "/home/somebody/codes"
    assert (
        parse_recipe(["base_256_rvq4", "--tokenizer.teacher", "~/x"]).tokenizer.teacher == "/home/somebody/x"
    )


def test_a_model_from_nothing_needs_a_language_model_and_a_tokenizer() -> None:
    with pytest.raises(UserError, match=r"^recipe: mllm\.llm is missing; name a language model"):
        parse_recipe(["nano_mllm", "--mllm.llm", "null"])
    with pytest.raises(UserError, match=r"^recipe: mllm\.visual_tokenizer is missing; name its folder"):
        parse_recipe(["nano_mllm", "--mllm.visual_tokenizer", "null"])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--validation.prompts", "[a]"], "validation: every is missing"),
        (["--mllm.llm", "[a]"], "mllm.llm: Expected a text"),
        (["--mllm.lora", "5"], "mllm.lora: Expected a mapping. Got value: 5"),
        (["--data.sources", "{a: null}"], "data.sources.a is null; expected settings by name"),
        (["--data.sources.own", "null"], "data.sources.own is null; expected settings by name"),
        (["--optimizer", "null"], "optimizer is null; expected settings by name"),
        (["--optimizer", "[1]"], "optimizer is [1]; expected settings by name"),
        (["--run", "3"], "run is 3; expected settings by name"),
        (["--run", "x"], "run: 'x' is not a file of settings; give settings by name"),
        (["--run.steps", "1e3"], "run.steps: Expected an integer. Got value: 1000.0"),
        (
            ["--run.offload", "8"],
            "run.offload: Expected one of 'none', 'optimizer', 'all'. Got value: 8",
        ),
    ],
)
def test_a_wrong_kind_of_value_is_told_in_plain_words(arguments, reason):
    with pytest.raises(UserError) as error:
        parse_recipe(["nano_sft", *arguments])
    assert str(error.value) == f"recipe: {reason}"
