"""A checkpoint becomes the model that its run exports, from the files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dualtoken.common.errors import UserError
from dualtoken.common.outputs import MARK
from dualtoken.scripts.cli import run_command
from dualtoken.train.backend.checkpoint import Checkpoints
from dualtoken.train.backend.checkpoint_files import RECIPE, STATE, checksum
from dualtoken.train.backend.export import find_checkpoint, recipe_of

from ..conftest import Chain, run_training
from ..test_lora import llm, lora_recipe  # noqa: F401  (a fixture)
from .test_checkpoint import ALONE, saved


def convert(*arguments: Any) -> int:
    return run_command("convert", ["checkpoint", *map(str, arguments)])


def forget_the_data(run: Path) -> None:
    """As where a checkpoint is all there is: no shards, no other file of the run."""
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    content = yaml.safe_load((checkpoint / RECIPE).read_text())
    for source in content["data"]["sources"].values():
        source["path"] = "/gone"
    (checkpoint / RECIPE).write_text(yaml.safe_dump(content))
    # Size and checksum in the state were those of the file before.
    state = json.loads((checkpoint / STATE).read_text())
    state["files"][RECIPE] = (checkpoint / RECIPE).stat().st_size
    state["checksums"][RECIPE] = checksum(checkpoint / RECIPE)
    (checkpoint / STATE).write_text(json.dumps(state))


def assert_same_folder(one: Path, other: Path) -> None:
    names = [
        sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.name != MARK)
        for folder in (one, other)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith(".safetensors"):
            a, b = load_file(one / name), load_file(other / name)
            assert a.keys() == b.keys()
            assert all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)
        elif name.endswith(".json") and name != "tokenizer.json":  # that also records how it was last called
            assert (one / name).read_text() == (other / name).read_text()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "options", "processes", "average"),
    [
        pytest.param("contrastive", ["--run.weight_average", "0.9"], 1, True, marks=SLOW),
        pytest.param("tokenizer", ["--run.zero_stage", "2"], 2, False, marks=SLOW),
        ("mllm", ["--run.precision", "bf16", "--run.zero_stage", "1"], 1, False),
        pytest.param("mllm", ["--run.zero_stage", "3"], 1, False, marks=SLOW),
    ],
)
def test_a_checkpoint_gives_the_model_of_its_run(
    name: str, options: list[str], processes: int, average: bool, chain: Chain, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    steps = ["--run.steps", "3", "--run.keep_checkpoints", "1"]
    run_training([*chain.recipe(name, run), *options, *steps], processes)
    forget_the_data(run)
    assert convert(run, "--output", tmp_path / "out", *(["--average"] if average else [])) == 0
    assert_same_folder(run / "model", tmp_path / "out")
    if average:  # the last weights are others
        assert convert(run, "--output", tmp_path / "last", "--dtype", "bf16") == 0
        files = [tmp_path / folder / "model.safetensors" for folder in ("out", "last")]
        averaged, last = (load_file(file) for file in files)
        assert last["logit_scale"].dtype == torch.bfloat16
        assert any(not torch.equal(averaged[key].bfloat16(), last[key]) for key in last)
    else:
        assert convert(run, "--output", tmp_path / "none", "--average") == 2
        assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_adapters_are_merged(chain: Chain, llm: Path, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    steps = ["--run.steps", "3", "--run.keep_checkpoints", "1"]
    run_training([*lora_recipe(chain, run, llm), *steps])
    forget_the_data(run)
    assert convert(run / "checkpoints" / "step-00000003", "--output", tmp_path / "out") == 0
    assert_same_folder(run / "model", tmp_path / "out")


def test_a_newer_incomplete_checkpoint_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    checkpoints: Checkpoints = saved(run / "checkpoints", 10, 20)
    (checkpoints.path(20) / "state.json").write_text("{")
    (checkpoints.folder / "step-00000030").mkdir()  # not made by a run
    assert find_checkpoint(run).name == "step-00000010"
    (message,) = caplog.messages
    assert "step-00000020 is incomplete" in message
    assert message.endswith("step-00000010 is used")


def test_the_checkpoint_meant_is_found_or_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoints: Checkpoints = saved(run / "checkpoints", 10, 20)
    assert find_checkpoint(run).name == "step-00000020"
    assert find_checkpoint(run, 10) == checkpoints.path(10)
    assert find_checkpoint(checkpoints.path(10)) == checkpoints.path(10)
    with pytest.raises(UserError, match=r"no checkpoint of step 15; there are 10, 20"):
        find_checkpoint(run, 15)
    with pytest.raises(UserError, match=r"best.json names no intact checkpoint"):
        find_checkpoint(run, "best")
    with pytest.raises(UserError, match="neither the output folder of a run"):
        find_checkpoint(tmp_path)
    with pytest.raises(UserError, match="--step chooses among"):
        find_checkpoint(checkpoints.path(10), 10)
    with pytest.raises(UserError, match=r"has no recipe.yaml"):
        recipe_of(checkpoints.path(10))
    (checkpoints.path(10) / "weights.pt").unlink()
    with pytest.raises(UserError, match=r"incomplete: weights.pt is missing"):
        find_checkpoint(checkpoints.path(10))
    assert Checkpoints(run / "checkpoints", ALONE, keep=1).steps() == [20]
