"""The index of a folder: shards are read through it without being looked at; it never changes a record."""

import json
import pickle
from pathlib import Path

import pytest

from dualtoken.common.outputs import SHARDS_INDEX, check_output
from dualtoken.data_pipelines.records import Record, RecordError, assistant, user
from dualtoken.data_pipelines.shards import tar_index
from dualtoken.data_pipelines.shards.format import MANIFEST
from dualtoken.data_pipelines.shards.packed_index import PackedIndex, PackedShard
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.writer import ShardWriter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "data", source="s", licence="l", shard_size=4) as writer:
        for number in range(10):
            writer.write(Record(f"r{number}", [user("?"), assistant(str(number) * 600)]))
    return tmp_path / "data"


def ids(dataset: ShardDataset) -> list[str]:
    return [record.id for record in dataset]


def test_a_tolerant_dataset_opens_no_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ids(ShardDataset(folder))
    reads: list[Path] = []
    monkeypatch.setattr(tar_index, "_parse_index", lambda *given: reads.append(given))
    opened = Path.open

    def spy(path: Path, *given: object, **more: object) -> object:
        reads.extend([path] if path.suffix == ".tar" else [])
        return opened(path, *given, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", spy)
    dataset = ShardDataset(folder, tolerant=True)
    assert not reads
    assert all(isinstance(index, PackedShard) for index in dataset._indexes)
    assert ids(dataset) == expected == ids(pickle.loads(pickle.dumps(dataset)))


def test_it_has_the_spans_of_the_indexes_next_to_the_tars(folder: Path) -> None:
    packed = PackedIndex.open(folder / SHARDS_INDEX)
    assert packed is not None
    for entry in json.loads((folder / MANIFEST).read_text())["shards"]:
        index, shard = tar_index.stored_index(folder / entry["file"]), packed.shard(entry)
        assert index is not None
        assert shard is not None
        assert [shard.span(n) for n in range(len(shard))] == [index.span(n) for n in range(len(index))]
        assert packed.shard({**entry, "sha256": "other"}) is None


@pytest.mark.parametrize("damage", [b"", b"DTSHARD1", b"x" * 500, None])
def test_a_missing_or_damaged_one_is_made_again(folder: Path, damage: bytes | None) -> None:
    path = folder / SHARDS_INDEX
    content = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage)
    assert ids(ShardDataset(folder, tolerant=True)) == [f"r{n}" for n in range(10)]
    assert path.read_bytes() == content
    path.write_bytes(content[:-40] + b"\xff" * 40)  # plausible, with impossible spans
    dataset = ShardDataset(folder, tolerant=True)
    with pytest.raises(RecordError, match=r"shards\.index is damaged"):
        dataset.record(9)


def test_a_shard_of_another_size_is_looked_at(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = folder / "train-00001.tar"
    shard.write_bytes(shard.read_bytes()[:3500])
    dataset = ShardDataset(folder, tolerant=True)
    assert "2 of its 4 records are lost" in caplog.text
    assert dataset.record(4).id == "r4"
    assert dataset.record(8).id == "r8"


def test_a_reader_may_add_it_to_a_folder_that_is_replaced_later(folder: Path) -> None:
    mark = json.loads((folder / ".dualtoken.json").read_text())
    assert SHARDS_INDEX not in mark["entries"]
    check_output(folder, {}, overwrite=True)
