"""Checkpoints changed by a disk, a person or an attacker: nothing runs, the last intact one is used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualtoken.common.errors import UserError
from dualtoken.scripts.cli import run_command
from dualtoken.train.backend.checkpoint import Checkpoints
from dualtoken.train.backend.checkpoint_files import BEST, EXTRA, STATE, Best, checksum, damage, fault
from dualtoken.train.backend.deepspeed import read_by
from dualtoken.train.backend.saved_state import load_file

from ..conftest import Chain, run_training, train_here
from ..test_training import assert_same_losses, losses
from .test_checkpoint import ALONE, FakeEngine, load_newest, saved

STAGES = {"stage 0": "0", "stage 2": "2"}


@pytest.fixture(scope="module", params=list(STAGES))
def finished(request: pytest.FixtureRequest, chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with checkpoints of the steps 3 and 6, and averaged weights."""
    run = tmp_path_factory.mktemp("finished") / "run"
    options = ["--run.zero_stage", STAGES[request.param], "--run.weight_average", "0.9"]
    assert train_here([*chain.recipe("contrastive", run), *options]) == 0
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*"))] == [
        "step-00000003",
        "step-00000006",
    ]
    return run


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(run: Path) -> int:
    """Start the copied run again with the very recipe that it recorded."""
    return train_here([str(run / "recipe.yaml"), "--output", str(run)])


def describe_again(checkpoint: Path, *names: str) -> None:
    """Write the size and checksum of changed files into the state, as an attacker would."""
    state = json.loads((checkpoint / STATE).read_text())
    for name in names:
        state["files"][name] = (checkpoint / name).stat().st_size
        state["checksums"][name] = checksum(checkpoint / name)
    (checkpoint / STATE).write_text(json.dumps(state))


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


def zero_the_end(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def stored_files(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints" / "step-00000006").glob("*.pt"))


@pytest.mark.parametrize("hurt", [flip_a_byte, zero_the_end])
def test_a_change_of_the_same_size_is_found_and_the_previous_checkpoint_used(
    hurt: Callable[[Path], None], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = stored_files(copy)[-1]
    hurt(copy / "checkpoints" / "step-00000006" / name)
    shutil.rmtree(copy / "model")
    assert resume(copy) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "step-00000006" in line]
    assert len(lines) == 1
    assert f"the content of {name} is not what was written" in lines[0]
    assert lines[0].endswith("resuming from step 3")
    # The damaged one was written again on the way.
    assert damage(copy / "checkpoints" / "step-00000006") is None
    assert [line["step"] for line in losses(copy)] == [1, 2, 3, 4, 5, 6]


def test_no_object_of_a_checkpoint_runs_code(copy: Path, tmp_path: Path, capsys: Any) -> None:
    """In each of its files, with size and checksum corrected."""
    trace = tmp_path / "ran"
    for name in stored_files(copy):
        run = Path(shutil.copytree(copy, tmp_path / f"with-{name}"))
        checkpoint = run / "checkpoints" / "step-00000006"
        content = torch.load(checkpoint / name, weights_only=False)
        torch.save({**content, "more": Evil(trace)}, checkpoint / name)
        describe_again(checkpoint, name)
        shutil.rmtree(run / "checkpoints" / "step-00000003")
        assert resume(run) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "which are never loaded" in error
        assert run_command("convert", ["checkpoint", str(run), "--output", str(tmp_path / "out")]) == 2
        assert not trace.exists()
    assert len(stored_files(copy)) >= 2


def test_the_engine_itself_does_not_unpickle(copy: Path, tmp_path: Path) -> None:
    """Also what is put there after the check."""

    class Engine:
        class checkpoint_engine:
            pass

    read_by(Engine, load_file)
    torch.save({"x": Evil(tmp_path / "ran")}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="Python objects"):
        Engine.checkpoint_engine.load(str(tmp_path / "a.pt"), map_location="cpu")  # type: ignore[attr-defined]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[], {}, {"module": 3}, torch.zeros(2), None])
def test_a_file_of_another_structure_is_one_line(content: Any, copy: Path, capsys: Any) -> None:
    checkpoint = copy / "checkpoints" / "step-00000006"
    for name in stored_files(copy):
        torch.save(content, checkpoint / name)
        describe_again(checkpoint, name)
    assert resume(copy) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "step-00000006" in error.splitlines()[-1]


@pytest.mark.slow
def test_all_processes_agree_on_a_damaged_file_of_one(chain: Chain, tmp_path: Path) -> None:
    """The last file of the list is read by the second rank alone."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    arguments = [*chain.recipe("contrastive", run), "--run.zero_stage", "2"]
    run_training(arguments, processes=2)
    shutil.copytree(run, whole)
    for hurt in (flip_a_byte, lambda file: torch.save({"x": Evil(tmp_path / "ran")}, file)):
        checkpoint = run / "checkpoints" / "step-00000006"
        file = checkpoint / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
        hurt(file)
        if hurt is not flip_a_byte:
            describe_again(checkpoint, file.name)
        run_training(arguments, processes=2)
        assert damage(checkpoint) is None
        assert_same_losses(losses(whole), losses(run))
    assert not (tmp_path / "ran").exists()


# ---- the folder of checkpoints


def test_stray_files_and_folders_are_neither_read_nor_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    checkpoints = saved(folder, 10, 20, keep=1, keep_best=False)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder / "step-00000020", elsewhere)
    (folder / "step-00000030").write_text("a file")
    (folder / "step-00000040").symlink_to(elsewhere)
    (folder / "step-00000050").mkdir()
    (folder / "step-00000050" / "notes.txt").write_text("mine")
    for name in ("step-7", "step-abc", ".DS_Store", "step-00000060.partial", "mine.partial", ".best-mine"):
        (folder / name).write_text("a file")
    (folder / "own.partial").mkdir()
    strays = {path for path in folder.rglob("*") if "step-00000020" not in str(path)}
    assert checkpoints.steps() == [20]
    engine = FakeEngine()
    assert load_newest(checkpoints, engine) == 20
    for step in (30, 40, 50, 60):  # the names in use are needed now
        checkpoints.save(engine, step)
    assert checkpoints.steps() == [60]
    kept = {path.name.split(".aside")[0] for path in folder.iterdir()}
    assert {path.relative_to(folder).parts[0] for path in strays} <= kept
    assert (folder / "step-00000050.aside-1" / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in elsewhere.iterdir()) == ["state.json", "weights.pt"]


def test_a_damaged_checkpoint_does_not_count_among_those_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20, keep=2)
    flip_a_byte(tmp_path / "step-00000020" / "weights.pt")
    resumed = Checkpoints(tmp_path, ALONE, keep=2)
    assert load_newest(resumed, FakeEngine()) == 10
    resumed.save(FakeEngine(), 15)
    assert resumed.steps() == [10, 15]
    resumed.save(FakeEngine(), 20)
    assert resumed.steps() == [15, 20]
    assert damage(checkpoints.path(20)) is None


def test_an_old_checkpoint_without_checksums_is_used_if_it_is_readable(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    for step in (10, 20):
        state = json.loads((checkpoints.path(step) / STATE).read_text())
        del state["checksums"], state["data"]
        (checkpoints.path(step) / STATE).write_text(json.dumps(state))
    assert load_newest(checkpoints, FakeEngine()) == 20
    file = checkpoints.path(20) / "weights.pt"
    file.write_bytes(b"\x80" * file.stat().st_size)
    assert load_newest(checkpoints, FakeEngine()) == 10


@pytest.mark.parametrize(
    "best",
    [
        *("[]", "null", "3", '"x"', "{}", "{", "[" * 10_000, '{"step": -1, "loss": 1, "data": "training"}'),
        *('{"step": 1e400, "loss": 1, "data": "training"}', '{"step": "20", "loss": 1, "data": "training"}'),
        '{"step": 99999999999999999999, "loss": 1, "data": "training"}',
        '{"step": true, "loss": 1, "data": "training"}',
        '{"step": 20, "loss": "low", "data": "training"}',
        '{"step": 20, "loss": 1, "data": []}',
    ],
)
def test_an_unusable_best_file_is_ignored(best: str, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    (tmp_path / BEST).write_text(best)
    assert checkpoints.best() is None
    checkpoints.save(FakeEngine(), 30)
    assert checkpoints.steps() == [10, 20, 30]


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a\0b", "link"])
def test_a_state_that_names_files_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "checkpoints", 10)
    (tmp_path / "secret").write_text("x")
    (checkpoints.path(10) / "link").symlink_to(tmp_path / "secret")
    state = json.loads((checkpoints.path(10) / STATE).read_text())
    state["files"][name] = 1
    (checkpoints.path(10) / STATE).write_text(json.dumps(state))
    assert fault(checkpoints.path(10)) is not None
    with pytest.raises(UserError, match="no earlier one is intact"):
        checkpoints.newest()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(-(10**30)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["step", "world_size", "global_batch", "zero_stage", "files", "checksums", "data", "loss"]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return saved(tmp_path_factory.mktemp("fuzzed"), 10)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(key=st.sampled_from(KEYS), value=JSON, whole=st.booleans(), cut=st.integers(0, 300))
def test_any_content_of_the_json_files_is_at_worst_a_user_error(
    fuzzed: Checkpoints, key: str, value: Any, whole: bool, cut: int
) -> None:
    folder = fuzzed.path(10)
    good = json.loads((folder / STATE).read_text())
    best = {"step": 10, "loss": 1.0, "data": "training"}
    try:
        for path, content in ((folder / STATE, good), (fuzzed.folder / BEST, best)):
            changed = json.dumps(value if whole else {**content, key: value})
            path.write_text(changed if cut % 3 else changed[:cut], encoding="utf-8", errors="replace")
        fresh = Checkpoints(fuzzed.folder, ALONE, keep=1)
        assert fresh.steps() in ([], [10])
        assert fresh.best() is None or isinstance(fresh.best(), Best)
        assert isinstance(fault(folder), str | None)
        assert isinstance(damage(folder), str | None)
        with suppress(UserError):
            load_newest(fresh, FakeEngine())
    finally:
        (folder / STATE).write_text(json.dumps(good))
        (fuzzed.folder / BEST).unlink(missing_ok=True)


def test_the_extra_file_must_hold_a_state(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    torch.save([1, 2], checkpoints.path(10) / EXTRA)
    with pytest.raises(UserError, match="does not hold the state of a run"):
        load_newest(checkpoints, FakeEngine(), lambda state: None)
    assert os.listdir(tmp_path) == ["step-00000010"]
