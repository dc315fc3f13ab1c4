"""Validation by URL and with lost shards; it judges only the checkpoint of its own step, with signals too."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dualtoken.data_pipelines.records import Record, assistant, user
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.train.backend.checkpoint import Checkpoints, JudgedBy
from dualtoken.train.callbacks.checkpointing import Checkpointing
from dualtoken.train.callbacks.stop_request import StopRequest
from dualtoken.train.callbacks.validation import Validation

from ..conftest import Chain, train_here
from ..test_stream import alone, parse_recipe

ALONE = alone()


def test_a_checkpoint_is_judged_by_the_validation_of_its_own_step_only() -> None:
    checkpointing = Checkpointing(Checkpoints(Path("none"), ALONE, keep=1), every=2)
    state: Any = SimpleNamespace(validation_loss=(0.5, 4), step=4, stopping=False)
    assert checkpointing._judged(state) == JudgedBy(0.5, "validation")
    for stopping in (False, True):
        state.step, state.stopping = 5, stopping
        assert checkpointing._judged(state) is None


@pytest.fixture
def remote(tmp_path: Path) -> Any:
    """Shards of two records each behind a URL."""
    MemoryFileSystem.store.clear()
    with ShardWriter(tmp_path / "held", source="s", licence="l", shard_size=2) as writer:
        for number in range(8):
            writer.write(Record(f"r{number}", [user(f"Say {number}."), assistant(str(number))]))
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "held").iterdir():
        if path.name != "shards.index":  # an older folder
            system.pipe(f"/held/{path.name}", path.read_bytes())
    return system


def lose(system: Any, number: int) -> None:
    for ending in ("tar", "index.json"):
        system.rm(f"/held/train-{number:05d}.{ending}")


def test_validation_by_url_with_a_lost_shard(
    remote: Any, chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lose(remote, 1)
    sources = {"held": {"path": "memory://held"}}
    run = tmp_path / "run"
    arguments = chain.recipe("mllm", run, validation={"every": 3, "sources": sources})
    with caplog.at_level(logging.WARNING):
        assert train_here([*arguments, "--data.sources.chat.path", "memory://held"]) == 0
    assert "validation.sources.held: 2 of 8 records cannot be used" in caplog.text
    assert "2 of its 2 records are lost" in caplog.text
    assert (run / "validation.jsonl").read_text().count("validation/held/text") == 2


def test_lost_remote_shards_leave_the_lengths_as_stated(remote: Any, capsys: Any) -> None:
    """So all processes draw the same records, whichever shards each of them can read."""
    whole = len(ShardDataset("memory://held", tolerant=True))
    for number in range(3):
        lose(remote, number)
        assert len(ShardDataset("memory://held", tolerant=True)) == whole
    lose(remote, 3)
    with pytest.raises(ValueError, match="8 of 8 records are lost"):
        ShardDataset("memory://held", tolerant=True)


@pytest.mark.parametrize("moment", ["before", "within"])
def test_a_signal_leaves_its_time_to_the_checkpoint(
    moment: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is left out or given up, and nothing is judged by half of it."""
    sources = {name: {"path": str(chain.folder / "chat")} for name in ("one", "two")}
    recipe = parse_recipe(chain.recipe("mllm", tmp_path / "run", validation={"every": 3, "sources": sources}))
    from dualtoken.train.objectives import build_objective

    objective: Any = build_objective(recipe)
    validation = Validation(recipe, recipe.validation, objective, ALONE)
    called: list[Any] = []
    passes: list[int] = []

    class Engine:
        def __call__(self, **batch: Any) -> Any:
            passes.append(1)
            if moment == "within":
                os.kill(os.getpid(), signal.SIGTERM)
            return objective(**batch)

        def eval(self) -> None: ...

        def train(self) -> None: ...

    with StopRequest(ALONE) as request:
        state: Any = SimpleNamespace(
            step=3,
            stopping=moment == "before",
            callbacks=[request],
            engine=Engine(),
            validation_loss=(9.0, 0),
        )
        state.autocast = lambda: pytest.MonkeyPatch.context()
        state.call = lambda *given: called.append(given)
        validation.on_step_end(state)
    assert not called
    assert state.validation_loss == (9.0, 0)
    assert len(passes) == (0 if moment == "before" else len(validation.batches["one"]))
