"""Checkpoints written in the background: training waits for a copy, and nothing is complete too early."""

from __future__ import annotations

import threading
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dualtoken.common.errors import UserError
from dualtoken.train.backend import background_writing
from dualtoken.train.backend.background_writing import FilesToWrite, Snapshot
from dualtoken.train.backend.checkpoint import Checkpoints
from dualtoken.train.backend.checkpoint_files import damage, fault
from dualtoken.train.backend.distributed import World

from ..conftest import Chain, train_here


class SlowWriter:
    """A disk that waits for `ready`; a full one fails."""

    def __init__(self) -> None:
        self.ready, self.full = threading.Event(), False

    def save(self, state_dict: Any, path: str) -> None:
        self.ready.wait(30)
        if self.full:
            raise OSError(28, "No space left on device", path)
        torch.save(state_dict, path)


class Engine:
    """Holds one tensor as its state."""

    def __init__(self) -> None:
        self.checkpoint_engine, self.weights = SlowWriter(), torch.zeros(4)

    def train_batch_size(self) -> int:
        return 8

    def zero_optimization_stage(self) -> int:
        return 0

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        self.checkpoint_engine.save({"weights": self.weights}, path=f"{folder}/{tag}/weights.pt")


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, World(), keep=2, in_background=True)


def poll_until(checkpoints: Checkpoints, is_reached: Callable[[], bool]) -> None:
    """The steps of a run while a checkpoint is being written."""
    deadline = time.monotonic() + 30
    while not is_reached():
        assert time.monotonic() < deadline
        checkpoints.poll()
        time.sleep(0.01)


def test_a_copy_is_saved_as_the_original_is(tmp_path: Path) -> None:
    flat = torch.randn(12)
    layer = nn.BatchNorm1d(3)
    shared = {"step": torch.tensor(3.0)}
    marked = torch.randn(2, requires_grad=True)
    marked.mark = {"rank": 1}
    state = {
        "marked": marked,
        "module": layer.state_dict(),
        "parameter": layer.weight,
        "halves": [flat[:6].view(2, 3), flat[6:]],
        "transposed": torch.randn(3, 2).t(),
        "bf16": torch.randn(3).bfloat16(),
        "twice": (shared, shared, torch.Size([2, 3])),
        "empty": torch.empty(0),
    }
    snapshot = Snapshot()
    copied = snapshot.of(state)
    snapshot.finish()
    for name, one in (("original", state), ("copy", copied)):
        (tmp_path / name).mkdir()
        torch.save(one, tmp_path / name / "state.pt")
    before = (tmp_path / "original" / "state.pt").read_bytes()
    assert (tmp_path / "copy" / "state.pt").read_bytes() == before
    with torch.no_grad():
        for tensor in (flat, layer.weight, shared["step"], layer.running_mean):
            tensor.add_(1.0)
    torch.save(copied, tmp_path / "copy" / "state.pt")
    assert (tmp_path / "copy" / "state.pt").read_bytes() == before


def test_training_goes_on_while_the_state_of_the_step_is_written(
    engine: Engine, checkpoints: Checkpoints
) -> None:
    checkpoints.save(engine, 1, {"average": torch.zeros(2)})
    engine.weights.add_(1.0)  # the next step
    checkpoints.poll()
    assert checkpoints.steps() == []
    engine.checkpoint_engine.ready.set()
    poll_until(checkpoints, lambda: checkpoints.steps() == [1])
    folder = checkpoints.path(1)
    assert fault(folder) is None
    assert damage(folder) is None
    assert torch.load(folder / "weights.pt")["weights"].equal(torch.zeros(4))


def test_the_next_save_waits_for_the_one_before(engine: Engine, checkpoints: Checkpoints) -> None:
    checkpoints.save(engine, 1)
    threading.Timer(0.1, engine.checkpoint_engine.ready.set).start()
    checkpoints.save(engine, 2)
    assert checkpoints.steps() == [1]
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("is_written", [False, True])
def test_a_run_killed_before_the_renaming_resumes_from_the_checkpoint_before(
    engine: Engine, checkpoints: Checkpoints, is_written: bool
) -> None:
    engine.checkpoint_engine.ready.set()
    checkpoints.save(engine, 1)
    checkpoints.wait()
    if not is_written:
        engine.checkpoint_engine.ready.clear()
    checkpoints.save(engine, 2)
    if is_written:
        checkpoints._pending.files.result()  # all files are there; the process ends here
    again = Checkpoints(checkpoints.folder, World(), keep=2)
    assert again.newest() == 1
    assert fault(again.path(1)) is None
    assert [path.name for path in again.folder.iterdir()] == [again.path(1).name]
    engine.checkpoint_engine.ready.set()


def test_an_error_of_the_disk_is_raised_at_the_next_step(engine: Engine, checkpoints: Checkpoints) -> None:
    engine.checkpoint_engine.ready.set()
    checkpoints.save(engine, 1)
    checkpoints.wait()
    engine.checkpoint_engine.full = True
    checkpoints.save(engine, 2)
    with pytest.raises(UserError, match=r"step 2 could not be written .*No space left.*newest one is step 1"):
        poll_until(checkpoints, lambda: False)
    assert checkpoints.steps() == [1]
    assert len(list(checkpoints.folder.iterdir())) == 1
    checkpoints.poll()  # it is reported once


def test_a_rank_flushes_its_files_and_their_folder_before_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster only the node that wrote a file can flush it."""
    for rank in range(2):
        flushed: list[Path] = []
        monkeypatch.setattr(background_writing, "flush_to_disk", flushed.append)
        mine = [tmp_path / f"weights_{rank}.pt", tmp_path / f"optimizer_{rank}.pt"]
        mine[0].write_bytes(b"written already")
        files = FilesToWrite(tmp_path, [mine[0]], {mine[1]: partial(mine[1].write_bytes, b"now")})
        files.start()
        assert set(files.result()) == {path.name for path in mine}
        assert flushed == [*mine, tmp_path]


@pytest.mark.parametrize(
    "stage", [0, 2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_a_checkpoint_has_the_bits_of_one_that_training_waits_for(
    stage: int, chain: Chain, tmp_path: Path
) -> None:
    average = ["--run.weight_average", "0.9"] if stage < 3 else []
    options = ["--run.zero_stage", str(stage), "--run.save_every", "2", *average]
    found = []
    for name in ("false", "true"):
        output = tmp_path / name
        assert not train_here([*chain.recipe("mllm", output), *options, "--run.async_save", name])
        folders = sorted((output / "checkpoints").glob("step-*"))
        assert [folder.name[-2:] for folder in folders] == ["04", "06"]
        assert all(fault(folder) is None and damage(folder) is None for folder in folders)
        found.append([contents(file, stage) for folder in folders for file in sorted(folder.glob("*.pt"))])
    assert found[0]
    assert found[0] == found[1]


def contents(file: Path, stage: int) -> dict[str, int]:
    """The checksum of every record in a file of torch's."""
    with zipfile.ZipFile(file) as records:
        found = {one.filename: one.CRC for one in records.infolist()}
    if stage == 3:  # numbers that DeepSpeed gives to the parameters of a process, and their digest
        found = {name: value for name, value in found.items() if "/data/" in name}
    return found
