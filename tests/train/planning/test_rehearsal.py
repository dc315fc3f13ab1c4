"""What only a late step needs is tried before the first: what can fail at the start does not fail later."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dualtoken.train.planning import rehearsal

from ..conftest import Chain, _environment, train_here


def refused_at_start(arguments: list[str], output: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a run that ends before its first step."""
    capsys.readouterr()
    assert train_here(arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert not (output / "log.jsonl").exists()
    assert not list((output / "checkpoints").glob("*"))
    return error.splitlines()[-1]


@pytest.mark.parametrize(
    ("validation", "named"),
    [
        ({"prompts": [" \n "]}, "validation.prompts"),
        ({"prompts": ["a circle", "word " * 100_000]}, "validation.prompts[1] takes"),
        ({"prompts": ["a circle"], "guidance_scale": -1.0}, "guidance_scale"),
        ({"sources": {"held": {"path": "/nowhere"}}}, "validation.sources.held"),
    ],
)
def test_settings_of_validation_fail_before_the_first_step(
    validation: dict[str, Any], named: str, chain: Chain, tmp_path: Path, capsys: Any
) -> None:
    output = tmp_path / "run"
    recipe = chain.recipe("mllm", output, validation={"every": 100, **validation})
    assert named in refused_at_start(recipe, output, capsys)


def test_a_model_that_could_not_be_exported_is_refused_at_the_start(
    chain: Chain, tmp_path: Path, capsys: Any
) -> None:
    """The weights of the visual tokenizer are read at the end only."""
    tokenizer = Path(shutil.copytree(chain.folder / "tokenizer", tmp_path / "tokenizer"))
    weights = tokenizer / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    recipe = [*chain.recipe("mllm", tmp_path / "run"), "--mllm.visual_tokenizer", str(tokenizer)]
    assert "tokenizer" in refused_at_start(recipe, tmp_path / "run", capsys)


@pytest.mark.parametrize(
    ("package", "options"), [("wandb", ["--run.wandb_project", "x"]), ("tensorboard", [])]
)
def test_a_package_of_the_logs_that_is_missing_is_named_at_the_start(
    package: str,
    options: list[str],
    chain: Chain,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def find(name: str) -> Any:
        return None if name == package else importlib.util.find_spec(name)

    monkeypatch.setattr(rehearsal, "find_spec", find)
    output = tmp_path / "run"
    assert package in refused_at_start([*chain.recipe("contrastive", output), *options], output, capsys)
    assert not output.exists()


def test_a_damaged_log_does_not_stop_a_run(chain: Chain, tmp_path: Path) -> None:
    output = tmp_path / "run"
    recipe = chain.recipe("contrastive", output)
    assert train_here([*recipe, "--run.steps", "6", "--run.stop_after", "1"]) == 0
    log = output / "log.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole + b'[]\nnull\n{"step": []}\n{"step": 1e999}\n\xff\xfe\n' + b"[" * 10_000 + b"\n{")
    assert train_here([*recipe, "--run.steps", "6", "--run.stop_after", "2"]) == 0
    assert log.read_bytes().startswith(whole)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2]


def test_nothing_is_compiled_at_the_start_of_a_run(tmp_path: Path) -> None:
    """With an empty cache of compiled operators, as at the very first run, and a compiler that leaves a
    trace."""
    compiler = tmp_path / "c++"
    compiler.write_text(f"#!/bin/sh\ntouch {tmp_path}/compiled\nexit 1\n")
    compiler.chmod(0o755)
    code = "from dualtoken.train.backend import distributed as d\nd.join_world()\nd.leave_world()"
    environment = {**_environment(), "TORCH_EXTENSIONS_DIR": str(tmp_path / "cache")}
    environment |= {"CC": str(compiler), "CXX": str(compiler), "PATH": f"{tmp_path}:{environment['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "compiled").exists()
    assert not (tmp_path / "cache").exists()
    assert "ld:" not in done.stderr
