"""Shards behind a URL are read by ranges and equal those of the folder; failures are named."""

from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import Record, RecordError, assistant, image_part, user
from dualtoken.data_pipelines.scenes.scene import random_scene, render
from dualtoken.data_pipelines.shards import retries
from dualtoken.data_pipelines.shards.format import read_manifest
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.storage import is_url, locate
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.data_pipelines.stream.loader import example_batches
from dualtoken.data_pipelines.stream.mixture import BatchPlan, Mixture
from dualtoken.data_pipelines.stream.statistics import StreamStatistics


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "data", source="s", licence="l", shard_size=4) as writer:
        for number in range(10):
            image = image_part(render(random_scene(np.random.default_rng(number)), 24))
            codes = {"pixel_codes": np.full((2, 2, 3), number), "semantic_codes": np.zeros((2, 2, 3), int)}
            part = image if number % 2 else {"type": "image", **codes}
            writer.write(Record(f"r{number}", [user(part, "?"), assistant(str(number))], {"n": number}))
    return tmp_path / "data"


@pytest.fixture
def url(folder: Path) -> str:
    system = fsspec.filesystem("memory")
    MemoryFileSystem.store.clear()
    for path in folder.iterdir():
        system.pipe(f"/bucket/data/{path.name}", path.read_bytes())
    return "memory://bucket/data"


def facts(record: Record) -> tuple[Any, ...]:
    images = [
        part["pixel_codes"].tolist() if "pixel_codes" in part else np.asarray(part["image"]).tolist()
        for part in record.image_parts()
    ]
    return record.id, record.texts(), record.metadata, images


def test_a_url_gives_the_records_of_the_folder(folder: Path, url: str) -> None:
    local, remote = ShardDataset(folder), ShardDataset(url)
    assert read_manifest(url) == read_manifest(folder)
    assert [facts(record) for record in remote] == [facts(record) for record in local]
    tar = f"{url}/train-00001.tar"
    assert [facts(record) for record in ShardDataset([tar])] == [facts(local[n]) for n in range(4, 8)]
    through_file = ShardDataset(f"file://{folder}")
    assert [record.id for record in through_file] == [record.id for record in local]


def test_a_tar_without_an_index_is_read_through(url: str, caplog: pytest.LogCaptureFixture) -> None:
    names = [record.id for record in ShardDataset(url)]
    fsspec.filesystem("memory").rm("/bucket/data/train-00001.index.json")
    assert [record.id for record in ShardDataset(url)] == names
    assert "train-00001.tar has no index" in caplog.text


def test_only_the_requested_bytes_are_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShardDataset(url)
    ranges = []
    cat = MemoryFileSystem.cat_file

    def counting(self: Any, path: str, start: Any = None, end: Any = None, **given: Any) -> bytes:
        ranges.append((path, start, end))
        return cat(self, path, start, end, **given)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counting)
    assert dataset[5].id == "r5"
    assert len(ranges) == 1
    _, start, end = ranges[0]
    assert 0 < end - start < fsspec.filesystem("memory").size("/bucket/data/train-00001.tar") / 2


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_urls_and_skip_a_lost_shard(url: str, workers: int) -> None:
    sources = [ShardDataset(url)]
    fsspec.filesystem("memory").rm("/bucket/data/train-00000.tar")
    statistics = StreamStatistics(["remote"])
    batches = example_batches(
        BatchPlan(Mixture([10], [1.0], seed=0), 3), sources, name_of, list, 0, workers, statistics
    )
    names = [name for batch in islice(batches, 10) for name in batch.inputs]
    assert len(names) == 30
    assert set(names) == {f"r{n}" for n in range(4, 10)}
    assert statistics.skipped >= 12  # its four records in each of three epochs


def name_of(record: Record, draw: int) -> str:
    return record.id


def test_a_completely_lost_source_is_replaced(folder: Path) -> None:
    class Lost:
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, index: int) -> Record:
            raise RecordError(f"record {index} is lost")

    statistics = StreamStatistics(["lost", "kept"])
    plan = BatchPlan(Mixture([1000, 10], [1.0, 1.0], seed=0), 4)
    sources = [Lost(), ShardDataset(folder)]
    batches = list(islice(example_batches(plan, sources, name_of, list, 0, 0, statistics), 5))
    assert [len(batch.inputs) for batch in batches] == [4] * 5
    assert statistics.skipped > 0
    assert statistics.read()["share/kept"] == 1.0
    with pytest.raises(UserError, match="is lost"):
        next(example_batches(BatchPlan(Mixture([1000], [1.0], seed=0), 4), [Lost()], name_of, list))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/nothing", "not a folder of shards"),
        ("memory://bucket/nothing/x.tar", "not found"),
        ("nosuch://bucket/data", "cannot be opened"),
    ],
)
def test_a_missing_file_is_named(address: str, message: str, url: str) -> None:
    with pytest.raises(UserError, match=message):
        ShardDataset(address)


def test_a_protocol_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: Any, **more: Any) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UserError, match="Install s3fs"):
        ShardDataset("s3://bucket/data")


def test_a_remote_shard_that_fails_is_a_record_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShardDataset(url)

    def broken(*given: Any, **more: Any) -> bytes:
        raise RuntimeError("connection reset")  # no OSError, as with some protocols

    monkeypatch.setattr(MemoryFileSystem, "cat_file", broken)
    monkeypatch.setattr(retries, "WAITS", (0.0,))
    with pytest.raises(RecordError, match="connection reset"):
        dataset[0]


def test_is_url() -> None:
    assert [is_url(p) for p in ("s3://a", "https://a/b", "simplecache::s3://a", "memory://x")] == [True] * 4
    assert [is_url(p) for p in ("a/b", "/a", "file:///a", "C:/data", "a:b")] == [False] * 5
    assert str(locate("s3://bucket/data/") / "manifest.json") == "s3://bucket/data/manifest.json"
    assert str(locate("file:///a/b")) == "/a/b"
