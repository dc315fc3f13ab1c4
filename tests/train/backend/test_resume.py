"""A run resumes with its present recipe, or not at all: no change is ignored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.common.errors import UserError
from dualtoken.scripts.cli import run_command
from dualtoken.train.backend.checkpoint_files import RECIPE, STATE, checksum
from dualtoken.train.backend.resume import Change, changes, written_recipe
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import plain_recipe
from dualtoken.train.config.schedule import ScheduleConfig
from dualtoken.train.optimizers import learning_rate_factor
from dualtoken.train.trainer import Trainer

from ..conftest import Chain, train_here


def stopped_run(chain: Chain, run: Path, stage: int) -> Path:
    """A run of six steps that was stopped after three."""
    options = ["--run.zero_stage", str(stage), "--run.stop_after", "3"]
    assert train_here([*chain.recipe("contrastive", run), *options]) == 0
    return run


@pytest.fixture(scope="module")
def stopped(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped_run(chain, tmp_path_factory.mktemp("stopped") / "run", 0)


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def resume(run: Path, *options: str) -> int:
    return train_here([str(run / RECIPE), "--output", str(run), "--run.stop_after", "0", *options])


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [0, 2])
def test_allowed_changes_are_applied_and_reported(
    stage: int,
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = stopped_run(chain, tmp_path / "run", stage)
    engines: list[Any] = []
    fit = Trainer.fit

    def spy(trainer: Trainer) -> None:
        engines.append(trainer.engine)
        fit(trainer)

    monkeypatch.setattr(Trainer, "fit", spy)
    changed = {
        "optimizer.lr": 0.02,
        "optimizer.betas": [0.8, 0.9],
        "optimizer.eps": 1e-6,
        "optimizer.weight_decay": 0.3,
        "optimizer.gradient_clipping": 0.5,
        "schedule.kind": "linear",
        "schedule.warmup_steps": 5,
        "schedule.final_ratio": 0.5,
        "run.steps": 8,
        "run.log_every": 1,
    }
    before = yaml.safe_load((copy / RECIPE).read_text())
    assert (
        resume(
            copy,
            *(
                word
                for key, value in changed.items()
                for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
            ),
        )
        == 0
    )
    said = capsys.readouterr().err
    for key, value in changed.items():
        section, name = key.split(".")
        was = before[section][name]
        assert (was == value) == (f"with {key} {value} (was {was})" not in said), key
    (engine,) = engines
    schedule = ScheduleConfig("linear", warmup_steps=5, final_ratio=0.5)
    rates = [line["learning_rate"] for line in log(copy)]
    # The rate of a line is that of the step after it.
    expected = [0.02 * learning_rate_factor(step, 8, schedule) for step in range(4, 9)]
    assert rates[3:] == pytest.approx(expected, abs=1e-6)
    for group in engine.optimizer.param_groups:
        assert list(group["betas"]) == [0.8, 0.9]
        assert group["eps"] == 1e-6
        assert group["weight_decay"] in (0.3, 0.0)
        assert group["initial_lr"] == 0.02
    assert {group["weight_decay"] for group in engine.optimizer.param_groups} == {0.3, 0.0}
    assert engine.gradient_clipping() == getattr(engine.optimizer, "clip_grad", 0.5) == 0.5
    recorded = yaml.safe_load((copy / RECIPE).read_text())
    assert (recorded["optimizer"]["lr"], recorded["run"]["steps"]) == (0.02, 8)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--seed", "3"], "seed 3 (was 0)"),
        (["--data.sources.scenes.weight", "2"], "data.sources.scenes.weight 2.0 (was 1.0)"),
        (["--data.sort_window", "4"], "data.sort_window 4 (was 1)"),
        (["--contrastive.patch_weight", "0.5"], "contrastive.patch_weight 0.5 (was 1.0)"),
        (["--contrastive.vision_config.hidden_size", "64"], "vision_config.hidden_size 64 (was 32)"),
        (["--run.precision", "bf16_autocast"], "run.precision bf16_autocast (was fp32)"),
        (["--init_from", "somewhere"], "init_from somewhere (was None)"),
        (["--optimizer.lr_scale", '{"vision": 0.1}'], "other parameter groups"),
        (["--data.micro_batch_size", "2"], "4 records per step, this one uses 2"),
    ],
)
def test_changes_that_make_another_run_are_refused(
    options: list[str], named: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and "tf" not in path.name}
    assert resume(copy, *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert named in error
    assert {path: path.read_bytes() for path in before} == before


def test_data_may_move_but_not_change(
    chain: Chain, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(chain.folder / "t2i", tmp_path / "moved")
    other = shutil.copytree(chain.folder / "vqa", tmp_path / "other")
    assert resume(copy, "--data.sources.scenes.path", str(other)) == 2
    assert "data.sources.scenes.path" in capsys.readouterr().err.splitlines()[-1]
    assert resume(copy, "--data.sources.scenes.path", str(moved)) == 0
    assert "with data.sources.scenes.path" in capsys.readouterr().err
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = "0" * 64
    (moved / "manifest.json").write_text(json.dumps(manifest))
    assert resume(copy, "--data.sources.scenes.path", str(moved), "--run.steps", "7") == 2
    assert "the records of data.sources.scenes are not those" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "a: {" * 200 + "}" * 200,
        "[" * 5000,
        "a: !!python/object/apply:os.system [false]",
        "\0",
        "a: [",
        "optimizer: {lr: [1]}\nseed: 0",
    ],
)
def test_a_hostile_recipe_of_a_checkpoint_is_one_line(text: str, copy: Path, capsys: Any) -> None:
    checkpoint = copy / "checkpoints" / "step-00000003"
    given = shutil.copy(copy / RECIPE, copy.with_suffix(".given"))
    (checkpoint / RECIPE).write_text(text)
    state = json.loads((checkpoint / STATE).read_text())
    state["files"][RECIPE] = len(text.encode())
    state["checksums"][RECIPE] = checksum(checkpoint / RECIPE)
    (checkpoint / STATE).write_text(json.dumps(state))
    convert = ["checkpoint", str(checkpoint), "--output", str(copy.with_name("out"))]
    for status in (train_here([str(given), "--output", str(copy)]), run_command("convert", convert)):
        assert status == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "it/s" not in line]
    assert len(lines) == 2
    assert all("error: " in line for line in lines)


def test_only_differences_count(chain: Chain, tmp_path: Path) -> None:
    recipe = parse_recipe(chain.recipe("mllm", tmp_path / "run"))
    before = plain_recipe(recipe)
    assert changes(before, plain_recipe(recipe)) == []
    # Another version may lack a key that has its default here, and may know others.
    older = {**before, "run": {key: value for key, value in before["run"].items() if key != "max_skipped"}}
    assert changes(older, before) == []
    assert changes({**before, "validation": {"every": 5}}, before) == [
        Change("validation.every", 5, "not set")
    ]


KEYS = st.sampled_from(["seed", "data", "run", "optimizer", "mllm", "sources", "path", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(content=VALUES, noise=st.binary(max_size=20))
def test_any_content_of_a_recipe_is_compared_or_refused(
    content: Any, noise: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzz", numbered=True)
    for data in (yaml.safe_dump(content).encode(), noise):
        (folder / RECIPE).write_bytes(data)
        try:
            written = written_recipe(folder)
        except UserError:
            continue
        assert isinstance(changes(written or {}, {"seed": 0, "run": {"steps": 3}}), list)
