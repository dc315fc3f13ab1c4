"""Checkpoints: intact or passed over, the newest and the best kept, no loss by full disks or signals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dualtoken.common.errors import UserError
from dualtoken.scripts.cli import users_mistake
from dualtoken.train import trainer
from dualtoken.train.backend.checkpoint import Checkpoints, JudgedBy
from dualtoken.train.backend.checkpoint_files import EXTRA, STATE, Best, fault
from dualtoken.train.backend.distributed import World
from dualtoken.train.callbacks.base import TrainState
from dualtoken.train.callbacks.checkpointing import Checkpointing
from dualtoken.train.callbacks.stop_request import ECHO_SECONDS, StopRequest
from dualtoken.train.callbacks.weight_average import WeightAverage
from dualtoken.train.metrics import Metrics

from ..conftest import Chain, train_here

ALONE = World()


class Writer:
    """DeepSpeed's writer of files; ``full`` makes the disk full after that many bytes."""

    full: int | None = None

    def save(self, state_dict: Any, path: str) -> None:
        if self.full is not None:
            Path(path).write_bytes(b"x" * self.full)
            raise OSError(28, "No space left on device", path)
        torch.save(state_dict, path)


class FakeEngine:
    """Saves a file, remembers what it loaded."""

    def __init__(self, batch: int = 8) -> None:
        self.checkpoint_engine, self.batch, self.loaded = Writer(), batch, ""

    def train_batch_size(self) -> int:
        return self.batch

    def zero_optimization_stage(self) -> int:
        return 0

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        (Path(folder) / tag).mkdir(exist_ok=True)
        self.checkpoint_engine.save(tag, path=f"{folder}/{tag}/weights.pt")

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str, dict[str, Any]]:
        self.loaded = tag
        return f"{folder}/{tag}", {}


def load_newest(checkpoints: Checkpoints, engine: Any, load_extra: Any = None) -> int:
    """Resume from the newest checkpoint as a run does."""
    step = checkpoints.newest()
    if step:
        checkpoints.load(engine, step, load_extra)
    return step


def saved(folder: Path, *steps: int, **settings: Any) -> Checkpoints:
    checkpoints = Checkpoints(folder, ALONE, **{"keep": 3, **settings})
    for step in steps:
        checkpoints.save(FakeEngine(), step)
    return checkpoints


def test_old_checkpoints_go_and_half_written_ones_are_removed(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "checkpoints", 10, 20, 30, keep=2)
    (tmp_path / "checkpoints" / "step-00000040.partial").mkdir()  # what a killed run leaves
    assert checkpoints.steps() == [20, 30]
    assert load_newest(checkpoints, FakeEngine()) == 30
    assert not list((tmp_path / "checkpoints").glob("*.partial"))
    checkpoints.save(FakeEngine(), 40)
    assert checkpoints.steps() == [30, 40]


@pytest.mark.parametrize("damage", ["truncated", "missing", "no state", "torn state"])
def test_a_damaged_checkpoint_is_passed_over_with_one_line(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    newest = checkpoints.path(20)
    if damage == "truncated":
        os.truncate(newest / "weights.pt", 3)
    elif damage == "missing":
        (newest / "weights.pt").unlink()
    elif damage == "no state":
        (newest / STATE).unlink()
    else:
        os.truncate(newest / STATE, 10)
    engine = FakeEngine()
    assert load_newest(checkpoints, engine) == 10
    assert engine.loaded == "step-00000010"
    (line,) = capsys.readouterr().err.splitlines()
    assert "step-00000020 is incomplete" in line
    assert "resuming from step 10" in line
    # Once the run is there again, the damaged one is replaced, and it never counts as one of those kept.
    checkpoints.save(FakeEngine(), 20)
    assert checkpoints.steps() == [10, 20]


def test_a_run_does_not_silently_start_again_when_all_are_damaged(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    (tmp_path / "step-00000010" / "weights.pt").unlink()
    with pytest.raises(UserError, match=r"weights.pt is missing; no earlier one is intact"):
        load_newest(checkpoints, FakeEngine())
    assert load_newest(Checkpoints(tmp_path / "none", ALONE, keep=1), FakeEngine()) == 0


def test_the_best_is_kept_with_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ALONE, keep=1)
    for step, loss in ((10, 2.0), (20, 1.0), (30, 3.0), (40, None), (50, 1.5)):
        checkpoints.save(FakeEngine(), step, judged=None if loss is None else JudgedBy(loss, "training"))
    assert checkpoints.steps() == [20, 50]
    assert checkpoints.best() == Best(20, 1.0, "training")
    # A validation loss cannot be compared with a training loss; it replaces it.
    checkpoints.save(FakeEngine(), 60, judged=JudgedBy(9.0, "validation"))
    checkpoints.save(FakeEngine(), 70, judged=JudgedBy(0.1, "training"))
    assert checkpoints.steps() == [60, 70]
    none = Checkpoints(tmp_path / "none", ALONE, keep=1, keep_best=False)
    for step, loss in ((10, 1.0), (20, 2.0)):
        none.save(FakeEngine(), step, judged=JudgedBy(loss, "training"))
    assert none.steps() == [20]


def test_a_checkpoint_made_because_of_a_signal_does_not_compete(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted_loss = trainer.weighted_loss

    def asked_to_stop(*given: Any) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return weighted_loss(*given)

    monkeypatch.setattr(trainer, "weighted_loss", asked_to_stop)
    run = tmp_path / "run"
    assert train_here([*chain.recipe("contrastive", run), "--run.save_every", "100"]) == 143
    checkpoints = Checkpoints(run / "checkpoints", ALONE, keep=1)
    assert checkpoints.steps() == [1]  # the current step was finished
    assert checkpoints.best() is None


def test_the_loss_window_is_the_mean_over_steps_since_it_was_read() -> None:
    checkpointing = Checkpointing(Checkpoints(Path("none"), ALONE, keep=1), every=2)
    state: Any = SimpleNamespace(validation_loss=None, stopping=False)
    assert checkpointing._judged(state) is None
    for losses in ((2.0, 4.0), (6.0, 8.0)):
        state.losses = [torch.tensor(loss) for loss in losses]
        checkpointing.after_step(state)
    assert checkpointing._judged(state) == JudgedBy(5.0, "training")
    assert checkpointing._judged(state) is None


def test_a_full_disk_costs_nothing_but_the_new_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    engine = FakeEngine()
    engine.checkpoint_engine.full = 100
    with pytest.raises(UserError, match=r"step 30 could not be written .*No space left.* step 20: make room"):
        checkpoints.save(engine, 30)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    engine.checkpoint_engine.full = None
    checkpoints.save(engine, 30)
    assert checkpoints.steps() == [10, 20, 30]


@pytest.mark.parametrize("call", ["_make_folder", "_finish"])
def test_errors_of_every_part_of_saving_are_one_line(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 10)
    broken = "mkdir" if call == "_make_folder" else "rename"

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, broken, fail)
        with pytest.raises(UserError, match="step 20 could not be written"):
            checkpoints.save(FakeEngine(), 20)
    assert checkpoints.steps() == [10]


def test_a_full_disk_is_one_line_wherever_it_is_met() -> None:
    error = OSError(28, "No space left on device", "run/log.jsonl")
    assert users_mistake(error) == "the disk is full: run/log.jsonl; make room and start again"
    error = OSError(5, "Input/output error", "run/log.jsonl")
    assert users_mistake(error) == "'run/log.jsonl' cannot be used: Input/output error"
    assert users_mistake(OSError(5, "Input/output error")) is None


def test_another_batch_is_refused(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    with pytest.raises(UserError, match="8 records per step, this one uses 12"):
        load_newest(checkpoints, FakeEngine(batch=12))


def test_extra_state_is_restored_also_from_the_old_file(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, ALONE, keep=1)
    checkpoints.save(FakeEngine(), 5, {"objective": {"a": torch.ones(2)}})
    found: list[dict[str, Any]] = []
    load_newest(checkpoints, FakeEngine(), found.append)
    state = json.loads((tmp_path / "step-00000005" / STATE).read_text())
    (tmp_path / "step-00000005" / EXTRA).rename(tmp_path / "step-00000005" / "objective.pt")
    for name in ("files", "checksums", "data", "global_batch", "zero_stage"):  # nor had it these
        del state[name]
    (tmp_path / "step-00000005" / STATE).write_text(json.dumps(state))
    assert fault(tmp_path / "step-00000005") is None
    load_newest(checkpoints, FakeEngine(), found.append)
    assert [state["objective"]["a"].tolist() for state in found] == [[1, 1], [1, 1]]


def test_an_average_without_a_checkpoint_of_its_own_starts_from_the_loaded_weights() -> None:
    model: Any = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(3.0)  # as a checkpoint does that was written without averages
    parts: dict[str, Any] = dict.fromkeys(("recipe", "world", "objective", "engine"))
    parts["stream"] = SimpleNamespace(load_order_state=lambda saved: None)
    state = TrainState(**parts, metrics=Metrics(ALONE), step=0, last_step=0, callbacks=[average])
    state.load_state_dict({})
    with average.applied():
        assert model.weight.eq(3.0).all()


def test_the_first_signal_is_recorded_and_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(ALONE) as request:
        assert not request.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher's echo
        assert request.agreed()
        assert request.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    with StopRequest(ALONE) as request:
        os.kill(os.getpid(), signal.SIGINT)
        request._since -= 2 * ECHO_SECONDS
        monkeypatch.setattr(os, "kill", lambda process, number: sent.append(number))
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert sent == [signal.SIGINT]
