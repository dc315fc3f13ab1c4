"""Workers start by any method, and are sent no model: the way of Python 3.14, macOS and Windows works."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from dualtoken.data_pipelines import workers
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.samples import OutputOptions
from dualtoken.data_pipelines.records import Record, assistant, user
from dualtoken.data_pipelines.scenes.convert import SceneConverter, SceneOptions
from dualtoken.data_pipelines.shards.check import check_shards
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.data_pipelines.stream import loader
from dualtoken.train.backend.distributed import World
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.stream import Stream

from .conftest import Chain, train_here
from .test_stream import PACKED
from .test_training import assert_same_losses, losses

MEBIBYTE = 1 << 20


@pytest.fixture
def start_method() -> Iterator[Any]:
    """Sets Python's way to start processes, and resets it."""
    before = multiprocessing.get_start_method()
    yield lambda method: multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_start_method(before, force=True)


def opened(chain: Chain, name: str, folder: Path, *options: str) -> tuple[Stream, Any]:
    recipe = parse_recipe([*chain.recipe(name, folder / "run"), *options])
    return Stream.open(recipe, World()), build_objective(recipe)


@pytest.mark.parametrize("name", ["contrastive", "tokenizer", "mllm", "packed"])
def test_workers_are_sent_less_than_a_mebibyte_and_no_module(name: str, chain: Chain, tmp_path: Path) -> None:
    options = PACKED if name == "packed" else ()
    stream, objective = opened(chain, "mllm" if name == "packed" else name, tmp_path, *options)
    sent: list[bytes] = []

    class Loader:
        def __init__(self, dataset: Any, collate_fn: Any, **given: Any) -> None:
            self.sampler = iter(given.get("batch_sampler") or given["sampler"])
            sent.append(pickle.dumps((dataset, collate_fn, given["worker_init_fn"])))

        def __iter__(self) -> Iterator[Any]:
            dataset, collate, _ = pickle.loads(sent[-1])
            for item in self.sampler:
                draws = item if isinstance(item, list) else [item]
                found = [dataset[draw] for draw in draws]
                yield collate(found if isinstance(item, list) else found[0])

    with pytest.MonkeyPatch.context() as patched:
        for module in ("loader", "packed_loader"):
            patched.setattr(f"dualtoken.data_pipelines.stream.{module}.DataLoader", Loader)
        there = [batch.inputs for batch in islice(stream.run(objective, 0), 3)]
    again, _ = opened(chain, "mllm" if name == "packed" else name, tmp_path, *options)
    here = [batch.inputs for batch in islice(again.run(objective, 0), 3)]
    assert_equal(there, here)
    (content,) = sent
    assert len(content) < MEBIBYTE
    assert b"torch.nn" not in content
    assert b"train.objectives.mllm\n" not in content


def assert_equal(one: Any, other: Any) -> None:
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=0)


def test_a_dataset_of_many_shards_is_small_in_a_pickle(tmp_path: Path) -> None:
    """Ten million records in a thousand shards; their places are in a file that workers open themselves."""
    with ShardWriter(tmp_path / "data", source="s", licence="l", shard_size=1) as writer:
        for number in range(1000):
            writer.write(Record(f"r{number}", [user("?"), assistant("!")]))
    dataset = ShardDataset(tmp_path / "data", tolerant=True)
    content = pickle.dumps(dataset)
    assert len(content) < MEBIBYTE
    assert pickle.loads(content)[999].id == "r999"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_run_with_workers_has_the_losses_of_one_without(
    method: str, start_method: Any, chain: Chain, tmp_path: Path
) -> None:
    """Training of both kinds of batches, and validation."""
    for name, packing in (("plain", ()), ("packed", PACKED)):
        one, two = tmp_path / f"{name}-one", tmp_path / f"{name}-two"
        validation = {
            "every": 3,
            "batches": 2,
            "sources": {"held": {"path": str(chain.folder / "codes_vqa")}},
        }
        assert train_here([*chain.recipe("mllm", one, validation=validation), *packing]) == 0
        start_method(method)
        arguments = chain.recipe("mllm", two, validation=validation)
        assert train_here([*arguments, *packing, "--data.num_workers", "2"]) == 0
        start_method("fork")
        assert_same_losses(losses(one), losses(two))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_jobs_make_the_same_bytes_in_any_worker(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`prepare` and `prepare check`; what a job sends to each worker is small."""
    monkeypatch.setattr(workers, "_worker_context", lambda: multiprocessing.get_context(method))
    converter = SceneConverter(SceneOptions(count=40, image_size=16, task="t2i"))
    assert len(pickle.dumps(converter)) < MEBIBYTE
    for number in (1, 2):
        write_shards(converter, OutputOptions(tmp_path / str(number), workers=number, progress=False))
    names = sorted(path.name for path in (tmp_path / "1").glob("*.tar"))
    assert names
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert all(not faults for _, faults in check_shards(tmp_path / "1", workers=2))


def test_a_fork_server_outlives_the_signals_that_end_a_run(start_method: Any) -> None:
    """A scheduler signals every process of a job."""
    from multiprocessing import forkserver

    start_method("forkserver")
    forkserver._forkserver._stop()  # that of an earlier test
    workers.loader_context()
    status = Path(f"/proc/{forkserver._forkserver._forkserver_pid}/status")
    if not status.exists():
        pytest.skip("the system does not say which signals a process has blocked")
    blocked = int(re.search(r"SigBlk:\s*(\w+)", status.read_text())[1], 16)
    for number in workers.STOP_SIGNALS:
        assert blocked >> (number - 1) & 1
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(workers.STOP_SIGNALS)
    assert loader.loader_context() is not None
