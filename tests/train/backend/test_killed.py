"""Runs that end badly: preempted, out of disk space, killed at any moment. They resume as usual."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from dualtoken.train.backend.checkpoint import Checkpoints
from dualtoken.train.backend.checkpoint_files import fault

from ..conftest import Chain, run_training, start_training
from ..test_training import assert_same_losses, losses
from .test_checkpoint import ALONE


def checkpoints_of(output: Path) -> Checkpoints:
    return Checkpoints(output / "checkpoints", ALONE, keep=1)


def wait_for(condition: Any, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert running.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_same_model(one: Path, other: Path) -> None:
    a, b = (load_file(output / "model" / "model.safetensors") for output in (one, other))
    assert a.keys() == b.keys()
    assert all(a[key].equal(b[key]) for key in a)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_ends_the_run_with_a_checkpoint(
    number: signal.Signals, processes: int, chain: Chain, tmp_path: Path
) -> None:
    """To every process of the run, those that load data among them; or to one of two ranks only."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = ["--run.steps", "120", "--run.save_every", "1000", "--data.num_workers", str(2 - processes)]
    running = start_training([*chain.recipe("contrastive", stopped), *options], processes)
    try:
        log = stopped / "log.jsonl"
        wait_for(lambda: log.exists() and log.read_text().count("\n") >= 3, running)
        process = psutil.Process(running.pid)
        asked = process.children()[-1:] if processes > 1 else [process, *process.children(recursive=True)]
        assert len(asked) > 1 or processes > 1
        for one in asked:
            one.send_signal(number)
        _, errors = running.communicate(timeout=200)
    finally:
        running.kill()
    if processes == 1:  # with several, the status is the launcher's
        assert running.returncode == 128 + number
        assert f"{number.name} after step" in errors
        assert "Traceback" not in errors
    (step,) = checkpoints_of(stopped).steps()
    assert 3 <= step < 120
    assert losses(stopped)[-1]["step"] == step
    assert not (stopped / "model").exists()
    run_training([*chain.recipe("contrastive", stopped), *options], processes)
    run_training([*chain.recipe("contrastive", whole), *options], processes)
    assert_same_losses(losses(whole), losses(stopped))
    assert_same_model(whole, stopped)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_ten_times_the_weights_are_those_of_the_uninterrupted_run(
    chain: Chain, tmp_path: Path
) -> None:
    """SIGKILL at random moments of a run that saves at every step, so many of them fall into the writing."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--run.steps", "120", "--run.save_every", "1", "--run.zero_stage", "2"]
    options += ["--run.weight_average", "0.9"]
    run_training([*chain.recipe("contrastive", whole), *options])
    rng = random.Random(20)
    kills = torn = 0
    while kills < 10:
        before = checkpoints_of(killed).steps()
        running = start_training([*chain.recipe("contrastive", killed), *options])
        try:
            wait_for(lambda: checkpoints_of(killed).steps()[-1:] > before[-1:], running)  # noqa: B023
            time.sleep(rng.uniform(0, 0.2))  # a few steps: on a fast machine ten times must fit into the run
            assert running.poll() is None, "the run ended before it was killed ten times; give it more steps"
        finally:
            running.kill()
            running.communicate()
        kills += 1
        torn += bool(list((killed / "checkpoints").glob("*.partial")))
        newest = checkpoints_of(killed).path(checkpoints_of(killed).steps()[-1])
        assert fault(newest) is None
    assert torn, "no kill fell into the writing of a checkpoint"
    run_training([*chain.recipe("contrastive", killed), *options])
    assert_same_model(whole, killed)
    assert [line["step"] for line in losses(killed)] == list(range(1, 121))
    assert not list((killed / "checkpoints").glob("*.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "processes"), [(0, 1), (2, 2)])
def test_a_disk_that_fills_up_stops_the_run_with_one_line(
    stage: int, processes: int, chain: Chain, tmp_path: Path
) -> None:
    """The limit on the size of a file that a process writes stands for the disk; torch meets it as ENOSPC's
    sibling EFBIG."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    options = ["--run.zero_stage", str(stage)]
    run_training([*chain.recipe("contrastive", whole), *options], processes)
    run_training([*chain.recipe("contrastive", full), *options, "--run.stop_after", "3"], processes)
    shutil.rmtree(full / "tensorboard")
    files = [path for path in (full / "checkpoints").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    limit = max(len(content) for content in before.values()) // 2
    running = start_training([*chain.recipe("contrastive", full), *options], processes, largest_file=limit)
    _, errors = running.communicate(timeout=200)
    assert running.returncode == (2 if processes == 1 else 1)  # with several, the status is the launcher's
    lines = [line for line in errors.splitlines() if "error: the checkpoint of step 6" in line]
    assert len(lines) == processes
    assert "the newest one is step 3: make room" in lines[0]
    assert {path: path.read_bytes() for path in files} == before
    assert not list((full / "checkpoints").glob("*.partial"))
    run_training([*chain.recipe("contrastive", full), *options], processes)
    assert_same_model(whole, full)
