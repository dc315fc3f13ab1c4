"""Shards behind URLs on the local disk: downloaded once, complete or not at all, never more than allowed."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import Record, assistant, user
from dualtoken.data_pipelines.shards import node_cache
from dualtoken.data_pipelines.shards.format import MANIFEST
from dualtoken.data_pipelines.shards.node_cache import NodeCache
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.storage import Location
from dualtoken.data_pipelines.shards.writer import ShardWriter

URL = "memory://cached/data"


@pytest.fixture
def shards(tmp_path: Path) -> list[dict[str, Any]]:
    """The manifest's entries of five shards behind `URL`."""
    with ShardWriter(tmp_path / "data", source="s", licence="l", shard_size=8) as writer:
        for number in range(40):
            writer.write(Record(f"r{number}", [user("?"), assistant(str(number))]))
    MemoryFileSystem.store.clear()
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "data").iterdir():
        system.pipe(f"/cached/data/{path.name}", path.read_bytes())
    entries: list[dict[str, Any]] = json.loads((tmp_path / "data" / MANIFEST).read_text())["shards"]
    return entries


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files of which anything is read through fsspec."""
    found: list[str] = []
    cat = MemoryFileSystem.cat_file

    def counting(self: Any, path: str, *given: Any, **more: Any) -> bytes:
        found.append(path.rsplit("/", 1)[-1])
        return cat(self, path, *given, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counting)
    return found


def fetch(cache: NodeCache, entry: dict[str, Any]) -> Path | None:
    return cache.fetch(Location(f"{URL}/{entry['file']}"), entry["bytes"], entry["sha256"])


def copies(cache: NodeCache) -> list[Path]:
    return [path for path in cache.folder.iterdir() if not path.name.startswith(".")]


def test_several_reads_of_a_shard_bring_it_and_then_nothing_is_requested(
    tmp_path: Path, shards: list[dict[str, Any]], reads: list[str]
) -> None:
    dataset = ShardDataset(URL, tolerant=True, cache=NodeCache(tmp_path / "cache", 10**9))
    assert dataset._cache is not None
    assert dataset.record(20).id == "r20"
    dataset._cache.wait()
    assert len(copies(dataset._cache)) == 1, "a single record is no reason to download a shard"
    for number in (0, 1, 2):
        assert dataset.record(number).id == f"r{number}"
    dataset._cache.wait()
    assert sorted(path.name[25:] for path in copies(dataset._cache)) == ["shards.index", "train-00000.tar"]
    reads.clear()
    assert [dataset.record(n).id for n in range(8)] == [f"r{n}" for n in range(8)]
    assert not reads
    other = ShardDataset(URL, tolerant=True, cache=NodeCache(tmp_path / "cache", 10**9))
    assert reads == ["manifest.json"]
    reads.clear()
    assert other.record(3).id == "r3"
    assert not reads
    for path in copies(dataset._cache):  # removed to make room, a moment after it was found
        path.unlink()
    assert dataset.record(5).id == "r5"


def test_processes_download_a_shard_once(
    tmp_path: Path, shards: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads, begun, download = [], threading.Event(), node_cache._download

    def slow(shard: Location, path: Path, sha256: str) -> None:
        downloads.append(shard.name)
        begun.set()
        time.sleep(0.2)
        download(shard, path, sha256)

    monkeypatch.setattr(node_cache, "_download", slow)
    first = threading.Thread(target=fetch, args=(NodeCache(tmp_path / "cache", 10**9), shards[0]))
    first.start()
    begun.wait()
    other = NodeCache(tmp_path / "cache", 10**9)
    assert fetch(other, shards[0]) is None  # reads by ranges meanwhile
    first.join()
    assert fetch(other, shards[0]) is not None
    assert downloads == [shards[0]["file"]]


def test_what_was_read_last_stays_and_the_bound_holds(tmp_path: Path, shards: list[dict[str, Any]]) -> None:
    size = max(entry["bytes"] for entry in shards)
    cache = NodeCache(tmp_path / "cache", 3 * size)
    paths = []
    for number, entry in enumerate(shards[:3]):
        paths.append(fetch(cache, entry))
        assert paths[-1] is not None
        node_cache.os.utime(paths[-1], (number, number))
    NodeCache(tmp_path / "cache", 3 * size).find(Location(f"{URL}/{shards[0]['file']}"), shards[0]["sha256"])
    assert fetch(cache, shards[3]) is not None
    assert [path is not None and path.exists() for path in paths] == [True, False, True]
    assert sum(path.stat().st_size for path in copies(cache)) <= cache.most_bytes
    assert fetch(NodeCache(tmp_path / "cache", size // 2), shards[4]) is None


def test_a_broken_download_leaves_nothing(tmp_path: Path, shards: list[dict[str, Any]]) -> None:
    cache, entry = NodeCache(tmp_path / "cache", 10**9), shards[0]
    with pytest.raises(OSError, match="not the file that its manifest describes"):
        fetch(cache, {**entry, "sha256": "0" * 64})
    assert not [path for path in cache.folder.iterdir() if not path.name.startswith(".lock")]
    killed = cache._with_room(cache._path(Location(f"{URL}/{entry['file']}"), entry["sha256"]).name, 100)
    assert killed is not None
    assert fetch(cache, entry) is not None
    assert not killed.exists()
    old, mine = cache._with_room(f"{'0' * 24}-another.tar", 100), cache.folder / "mine.tar"
    assert old is not None
    mine.write_text("a user's file")
    node_cache.os.utime(old, (0, 0))
    assert fetch(cache, shards[1]) is not None
    assert not old.exists()
    assert fetch(NodeCache(cache.folder, 1), shards[2]) is None
    assert [path.name for path in copies(cache)] == ["mine.tar"]


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_cache.os, "getuid", lambda: -1)
    with pytest.raises(UserError, match="belongs to another user"):
        NodeCache(tmp_path / "cache", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        NodeCache(tmp_path / "file", 1)
