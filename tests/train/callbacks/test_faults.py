"""What breaks in the middle of a run: non-finite losses, spikes, a process that is gone."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.stream.loader import StreamBatch
from dualtoken.train.backend.distributed import World
from dualtoken.train.callbacks.step_guard import StepGuard

from ..conftest import Chain, _environment
from ..test_training import assert_same_losses, losses

PROGRAM = str(Path(__file__).with_name("faulty_run.py"))


def run_faulty(fault: list[str], arguments: list[str], processes: int = 2) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), PROGRAM, *fault, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=280)


class Engine:
    """What the guard sees of DeepSpeed at stage 0."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.basic_optimizer = module, optimizer

    def zero_optimization(self) -> bool:
        return False

    def step(self) -> None:
        self.basic_optimizer.step()
        self.basic_optimizer.zero_grad()


@pytest.fixture
def guarded(tmp_path: Path) -> tuple[StepGuard, nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    guard = StepGuard(Engine(model, optimizer), tmp_path, spike_factor=5.0, max_skipped=3)
    return guard, model, optimizer


def one_step(guard: StepGuard, model: nn.Linear, gradient: float, loss: float = 1.0) -> str | None:
    model.weight.grad = torch.full_like(model.weight, gradient)
    batch = StreamBatch({}, ["a", "b"], torch.tensor([0, 0]))
    state: Any = SimpleNamespace(world=World(), step=6, losses=[torch.tensor(loss)], micro_batches=[batch])
    guard.before_update(state)
    guard.engine.step()
    guard.after_update(state)
    return state.skipped


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    state = [value for part in optimizer.state.values() for value in part.values()]
    return [tensor.detach().clone() for tensor in (*model.parameters(), *state)]


@pytest.mark.parametrize(
    ("gradient", "loss", "reason"),
    [(math.nan, 1.0, "norm is infinite"), (1.0, math.inf, "a loss is"), (6.0, 1.0, "5 times the usual 1")],
)
def test_a_broken_step_changes_nothing_and_names_its_records(
    guarded: Any, tmp_path: Path, gradient: float, loss: float, reason: str
) -> None:
    guard, model, optimizer = guarded
    assert all(one_step(guard, model, 1.0) is None for _ in range(20))
    before = snapshot(model, optimizer)
    line = one_step(guard, model, gradient, loss)
    assert line is not None
    assert reason in line
    assert "records: a, b" in line
    assert all(torch.equal(*pair) for pair in zip(before, snapshot(model, optimizer), strict=True))
    assert json.loads((tmp_path / "skipped-steps.jsonl").read_text())["records"] == ["a", "b"]
    assert one_step(guard, model, 4.0) is None
    assert not torch.equal(before[0], model.weight)


def test_too_many_broken_steps_in_a_row_stop_the_run(guarded: Any) -> None:
    guard, model, _ = guarded
    for _ in range(2):
        assert one_step(guard, model, math.nan)
    assert one_step(guard, model, 1.0) is None
    for _ in range(2):
        assert one_step(guard, model, math.nan)
    with pytest.raises(UserError, match="3 steps in a row were skipped"):
        one_step(guard, model, math.nan)


def test_the_usual_norm_continues_from_a_checkpoint(guarded: Any, tmp_path: Path) -> None:
    guard, model, _ = guarded
    for _ in range(20):
        one_step(guard, model, 1.0)
    state = guard.state_dict()
    resumed = StepGuard(guard.engine, tmp_path, spike_factor=5.0, max_skipped=3)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_broken_steps_are_skipped_at_every_stage(chain: Chain, tmp_path: Path) -> None:
    """One rank's loss is non-finite at the first step, a spike comes at the 20th."""
    runs = []
    for stage in (0, 1, 2, 3):
        output = tmp_path / f"stage{stage}"
        options = ["--run.zero_stage", str(stage), "--run.spike_factor", "20", "--run.steps", "22"]
        options += ["--run.save_every", "0", "--optimizer.lr", "1e-4"]
        finished = run_faulty(["nan+spike", "1", "1+20"], [*chain.recipe("mllm", output), *options])
        assert finished.returncode == 0, finished.stderr[-3000:]
        skipped = [json.loads(line) for line in (output / "skipped-steps.jsonl").read_text().splitlines()]
        assert [line["step"] for line in skipped] == [1, 20]
        assert "not a number" in skipped[0]["reason"]
        assert "times the usual" in skipped[1]["reason"]
        assert len(skipped[0]["records"]) == 1  # that of the rank whose loss it was
        assert len(skipped[1]["records"]) == 2
        runs.append(losses(output))
    for other in runs[1:]:
        assert_same_losses(runs[0], other, 1e-5)


@pytest.mark.slow
def test_a_run_of_nothing_but_broken_steps_ends_with_a_message(chain: Chain, tmp_path: Path) -> None:
    options = ["--run.max_skipped", "2", "--run.save_every", "1"]
    recipe = chain.recipe("mllm", tmp_path / "run")
    finished = run_faulty(["nan", "0", "2,3,4,5,6"], [*recipe, *options], processes=1)
    assert finished.returncode == 2
    assert "2 steps in a row were skipped" in finished.stderr


@pytest.mark.slow
def test_when_a_process_is_killed_the_other_names_its_phase(chain: Chain, tmp_path: Path) -> None:
    """Without a launcher that would end the other one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = [sys.executable, PROGRAM, "kill", "1", "3", *chain.recipe("mllm", tmp_path / "run")]
    processes = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    running = [
        subprocess.Popen(
            [*arguments, "--run.timeout_minutes", "0.5"],
            env={**_environment(), **processes, "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        message = running[0].communicate(timeout=200)[1]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert running[0].returncode == 1
    assert "rank 0" in message
    assert "phase 'step 3: forward, backward and update'" in message
