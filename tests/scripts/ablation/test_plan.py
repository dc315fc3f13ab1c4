"""The plan of an ablation, and what is made of its results: overrides, means, verdicts, kept remarks."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.common.errors import UserError
from dualtoken.scripts.ablation.document import document, table, write_document
from dualtoken.scripts.ablation.plan import Claim, Plan, load_plan
from dualtoken.scripts.ablation.recipes import Folders, resolve
from dualtoken.scripts.ablation.summary import Results, Spread, judge
from dualtoken.scripts.cli import run_command
from dualtoken.train.config.reading import parse_recipe

ROOT = Path(__file__).parents[3]
NANO = ROOT / "ablations" / "nano.yaml"
RESULTS = ROOT / "ablations" / "results"
FOLDERS = Folders(Path("elsewhere"), Path("inputs"))


def tiny_plan(folder: Path, **changes: Any) -> Path:
    recipe = {
        "run": {"steps": 100},
        "schedule": {"warmup_steps": 3},
        "tokenizer": {"teacher": "runs/x/teacher"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    plan = {
        "name": "tiny",
        "inputs": "runs/x",
        "seeds": [0, 1, 2],
        "bases": {"base": {"recipe": "recipe.yaml", "kind": "tokenizer", "minutes": 2}},
        "variants": {
            "one": {"title": "one", "base": "base"},
            "two": {"title": "two", "base": "base", "overrides": {"tokenizer.model.pixel_layer": 5}},
        },
        "groups": {
            "pair": {
                "title": "A pair",
                "variants": ["one", "two"],
                "metrics": ["psnr_photos", "teacher_frechet", "zero_shot/*"],
                "claims": [
                    {"text": "two is better", "metric": "psnr_photos", "better": "two", "than": "one"}
                ],
            }
        },
        **changes,
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    return folder / "plan.yaml"


def write_results(plan: Plan, folders: Folders, values: dict[str, list[dict[str, float | None]]]) -> Results:
    for variant, runs in values.items():
        for seed, metrics in enumerate(runs):
            folder = folders.run(variant, seed)
            folder.mkdir(parents=True)
            result = {"seed": seed, "figures": metrics, "reference": {"zero_shot/scenes": 99.5}, "steps": 7}
            more = {"minutes": {"training": 1.0}, "machine": "a machine", "evaluation": {"scenes": 3}}
            (folder / "result.json").write_text(json.dumps(result | more))
    return Results.read(plan, folders)


PSNR = {"one": [20.11, 21.32, 20.53], "two": [25.04, 24.25, 26.66]}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    plan = load_plan(tiny_plan(tmp_path))
    values = {
        name: [
            {"psnr_photos": value, "teacher_frechet": None, "zero_shot/scenes": 50.0} for value in of_seeds
        ]
        for name, of_seeds in PSNR.items()
    }
    return write_results(plan, Folders(tmp_path / "runs", tmp_path), values)


def test_tables_hold_mean_and_sample_deviation(results: Results) -> None:
    lines = table(results, results.plan.groups["pair"]).splitlines()
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "variant",
        "seeds",
        "PSNR photos",
        "Fréchet distance, teacher's features",
        "zero-shot %: scenes",
    ]
    # By hand: mean 20.6533, squares 0.2952 + 0.4444 + 0.0152 over 2; mean 25.3167 …
    assert "| one | 3 | 20.65 ± 0.61 | – |" in lines[2]
    assert "| two | 3 | **25.32 ± 1.23** | – |" in lines[3]
    assert lines[4].startswith("| the teacher itself |")
    assert "99.5" in lines[4]
    for values, text in ((PSNR["one"], "20.65 ± 0.61"), (PSNR["two"], "25.32 ± 1.23")):
        assert f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}" == text


def test_one_run_has_no_deviation() -> None:
    spread = Spread.of([2.5])
    assert spread is not None
    assert spread.text(1) == "2.5"
    assert Spread.of([]) is None


def test_claims_are_judged_seed_by_seed(results: Results) -> None:
    claim = Claim("two is better", "psnr_photos", "two", "one")
    verdict = judge(results, claim)
    assert verdict.word == "holds"
    assert "+4.66 ± 1.62 dB" in verdict.facts  # of 4.93, 2.93 and 6.13
    assert "3 of 3 seeds" in verdict.facts
    assert judge(results, Claim("", "psnr_photos", "one", "two")).word == "does not hold"
    assert judge(results, Claim("", "teacher_frechet", "one", "two")).word == "not measured"
    assert (
        judge(results, Claim("", "zero_shot/scenes", "one", "two")).word == "does not hold"
    )  # no difference


@pytest.mark.parametrize(
    ("one", "two", "word"),
    [
        ([1.0, 1.0], [2.0, 3.0], "does not hold"),  # less is better
        ([2.0, 3.0], [1.0, 1.0], "holds"),
        ([2.0, 3.0], [1.0, 3.5], "undecided"),
        ([2.0], [1.0], "undecided"),  # of one seed nothing is known
    ],
)
def test_where_less_is_better(one: list[float], two: list[float], word: str, tmp_path: Path) -> None:
    plan = load_plan(tiny_plan(tmp_path))
    values = {
        name: [{"teacher_frechet": v} for v in of_seeds] for name, of_seeds in (("one", one), ("two", two))
    }
    found = write_results(plan, Folders(tmp_path / "runs", tmp_path), values)
    assert judge(found, Claim("", "teacher_frechet", "two", "one")).word == word


def test_remarks_are_kept_and_nothing_else(results: Results) -> None:
    first = document(results, "command", {})
    assert "a machine" in first
    written = first.replace("<!-- remarks: end (pair)", "Because of this.\n<!-- remarks: end (pair)")
    second = document(results, "command", {}, written + "old tail")
    assert second == written
    assert document(results, "command", {}, second) == second


def test_a_recipe_is_the_base_with_overrides_folders_seed_and_scale(tmp_path: Path) -> None:
    plan = load_plan(tiny_plan(tmp_path))
    recipe = resolve(plan, FOLDERS, "two", 3, scale=0.1)
    assert recipe["run"]["steps"] == 10
    assert recipe["schedule"]["warmup_steps"] == 1
    assert recipe["seed"] == 3
    assert recipe["output"] == "elsewhere/two/seed-3"
    assert recipe["tokenizer"] == {"teacher": "inputs/teacher", "model": {"pixel_layer": 5}}


def test_the_tables_of_the_docs_are_what_the_committed_results_say() -> None:
    results = Results.read(load_plan(NANO), Folders(RESULTS, RESULTS))
    text = (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")
    for group in results.plan.groups.values():
        assert set(group.variants) <= set(results.found), "every group has results"
        assert table(results, group) in text
        for claim in group.claims:
            assert f"- {claim.text}: **{judge(results, claim).word}**." in text


def test_the_document_made_again_of_the_committed_results_is_the_committed_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    committed = ROOT / "docs" / "ablations.md"
    again = Path(shutil.copy(committed, tmp_path))
    command = re.search(r"^- command: `(.+)`$", committed.read_text(encoding="utf-8"), re.MULTILINE)
    assert command is not None
    written = write_document(
        Results.read(load_plan(NANO), Folders(RESULTS, RESULTS)), again, command.group(1)
    )
    assert again.read_bytes() == committed.read_bytes()
    assert all(committed.with_name(path.name).is_file() for path in written)


@pytest.mark.parametrize("variant", list(load_plan(NANO).variants))
def test_the_recipes_of_nano_are_complete_and_differ_only_as_said(variant: str, tmp_path: Path) -> None:
    plan = load_plan(NANO)
    recipe = resolve(plan, FOLDERS, variant, 1)
    assert "{" not in json.dumps(recipe["data"]).replace('{"', "").replace(": {", "")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    parsed = parse_recipe([str(tmp_path / "recipe.yaml")])
    assert parsed.seed == 1
    texts = json.dumps(recipe)
    assert "runs/nano" not in texts
    if parsed.mllm is None:
        return
    other = plan.variants[variant].tokenizer
    tokenizer = f"elsewhere/{other}/seed-1/model" if other else "inputs/refinement/model"
    assert parsed.mllm.visual_tokenizer == tokenizer
    assert plan.used_sets(variant, "codes") == ["t2i", "vqa"]
    codes = parsed.data.sources["t2i"].path
    if other:
        assert codes == f"elsewhere/{other}/seed-1/codes/t2i"
    else:
        base = plan.variants[variant].base
        assert codes == f"elsewhere/codes/{base}/{FOLDERS.data(plan, 't2i').name}"


def test_codes_of_one_tokenizer_are_made_once_and_those_of_different_ones_lie_apart() -> None:
    plan = load_plan(NANO)

    def codes(variant: str, seed: int) -> Path:
        return FOLDERS.codes(plan, variant, seed, "t2i")

    assert codes("both", 0) == codes("pixel_only", 1)
    others = {codes(name, seed) for name in ("model_one_tokenizer", "model_two_encoders") for seed in (0, 1)}
    assert len(others | {codes("both", 0)}) == 5


def test_variants_of_a_group_have_the_same_steps_and_data() -> None:
    plan = load_plan(NANO)
    for name, group in plan.groups.items():
        recipes = [resolve(plan, FOLDERS, variant, 0) for variant in group.variants]
        assert len({recipe["run"]["steps"] for recipe in recipes}) == 1, name
        assert len({tuple(recipe["data"]["sources"]) for recipe in recipes}) == 1, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"colour": 1}, "unknown .'colour'"),
        ({"variants": {"one": {"title": "one", "base": "none"}}}, "'none' is not in bases"),
        ({"variants": {"one": {"title": "one", "bass": "base"}}}, "unknown .'bass'"),
        ({"variants": {"one": {"title": "o", "base": "base", "overrides": {"a": "{data:b}"}}}}, "data:b"),
        (
            {"variants": {"one": {"title": "o", "base": "base", "overrides": {"a": "{codes:b}"}}}},
            "neither it nor its base names the tokenizer",
        ),
        (
            {"variants": {"one": {"title": "o", "base": "base", "overrides": {"a": "{tokenizer}"}}}},
            "neither it nor its base names the tokenizer",
        ),
        ({"groups": {"g": {"title": "g", "variants": ["three"], "metrics": []}}}, "'three'"),
        (
            {"groups": {"g": {"title": "g", "variants": ["one"], "metrics": ["beauty"]}}},
            "'beauty' is unknown",
        ),
        ({"bases": {"base": {"recipe": "gone.yaml", "kind": "tokenizer"}}}, "gone.yaml"),
    ],
)
def test_mistakes_in_a_plan_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_plan(tiny_plan(tmp_path, **changes))


def test_the_command_lists_what_there_is_to_do(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "plan.yaml"), "--runs", str(tmp_path / "runs")]
    assert run_command("ablate", [*words, "--list", "--seeds", "0,1,2,3"]) == 0
    out = capsys.readouterr().out
    assert "3 of 4 runs done, about 2 minutes left" in out
    assert "about 4 minutes in all" in out
    assert run_command("ablate", [*words, "--report"]) == 0
    assert "20.65 ± 0.61" in (tmp_path / "runs" / "ablations.md").read_text()
    for wrong in (["--only", "none"], ["--seeds", "a"]):
        assert run_command("ablate", [*words, *wrong]) == 2


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers() | st.text(max_size=5), max_size=3),
    st.dictionaries(st.text(max_size=5) | st.integers(), st.integers() | st.text(max_size=5), max_size=3),
)
KEYS_OF_A_PLAN = [
    *[
        (key,)
        for key in ("name", "inputs", "seeds", "bases", "variants", "groups", "evaluation", "data", "about")
    ],
    *[("bases", "base", key) for key in ("recipe", "kind", "minutes", "overrides", "tokenizer", "x")],
    *[("variants", "one", key) for key in ("title", "base", "overrides", "tokenizer")],
    *[("groups", "pair", key) for key in ("title", "variants", "metrics", "claims", "about")],
    *[("evaluation", key) for key in ("scenes", "drawings", "sets", "skills", "grid")],
    ("bases", "../x"),
    ("data", "set"),
]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(where=st.sampled_from(KEYS_OF_A_PLAN), value=WRONG)
def test_a_plan_of_anything_is_read_or_refused_in_one_line(where, value, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "plan-of-anything"
    folder.mkdir(exist_ok=True)
    plan = yaml.safe_load(tiny_plan(folder).read_text())
    part = plan
    for key in where[:-1]:
        part = part.setdefault(key, {})
    part[where[-1]] = value
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, allow_unicode=True), encoding="utf-8")
    try:
        found = load_plan(folder / "plan.yaml")
        for variant in found.variants:
            resolve(found, FOLDERS, variant, found.seeds[0])
    except UserError:
        return


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: " * 5000,
        "a: &a [x]\n" + "".join(f"{n}: &{n} [*{p}, *{p}]\n" for p, n in pairwise("abcdefghijklmnopqr")),
        "? [a]\n: 1\n",
        "seeds: 2026-99-99\n",
        "\x00",
        "- 1\n",
        "!!python/object/apply:os.system [echo]\n",
    ],
    ids=range(8),
)
def test_yaml_that_is_no_plan_is_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "plan.yaml").write_text(text)
    assert (
        run_command("ablate", [str(tmp_path / "plan.yaml"), "--runs", str(tmp_path / "runs"), "--list"]) == 2
    )
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert len(err) <= 301


@pytest.mark.parametrize(
    "result",
    ["[]", "{}", '{"seed": -1}', '{"seed": 0, "figures": []}', '{"seed": 0, "minutes": {"a": "b"}}', "\0"],
)
def test_a_result_that_is_none_is_one_line(result: str, tmp_path: Path):
    plan = load_plan(tiny_plan(tmp_path))
    folder = Folders(tmp_path / "runs", tmp_path).run("one", 0)
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(result)
    with pytest.raises(UserError, match=r"result\.json"):
        Results.read(plan, Folders(tmp_path / "runs", tmp_path))
