"""Plain batches as in docs/howto/mix_and_pack.md: which record replaces an unusable one, and the log."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import Record, RecordError, assistant, user
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.data_pipelines.stream.loader import example_batches
from dualtoken.data_pipelines.stream.mixture import BatchPlan, Draw, Mixture
from dualtoken.data_pipelines.stream.packing import Cursor, WindowPlan, plan_state, resumed_plan
from dualtoken.data_pipelines.stream.statistics import BatchFacts, Skip, StreamStatistics


class Source:
    """Records named source-number, of which every `broken`-th cannot be used; counts what is read."""

    def __init__(self, number: int, size: int, broken: int = 0) -> None:
        self.number, self.size, self.broken = number, size, broken
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        self.reads[index] += 1
        if self.broken and index % self.broken == 0:
            raise RecordError(f"record {index} is broken")
        return Record(f"{self.number}-{index}", [])


def name_of(record: Record, draw: int) -> str:
    return record.id


def names(sources: list[Source], count: int, statistics: StreamStatistics | None = None) -> Iterator[str]:
    mixture = Mixture([len(source) for source in sources], [1.0] * len(sources), seed=0)
    batches = example_batches(BatchPlan(mixture, 4), sources, name_of, list, statistics=statistics)
    return (name for batch in islice(batches, count // 4) for name in batch.inputs)


def test_another_record_of_the_same_source_replaces_an_unusable_one() -> None:
    """The shares of the sources are those of the draws."""
    taken = list(names([Source(0, 90, broken=3), Source(1, 50)], 400))
    drawn = [Mixture([90, 50], [1.0, 1.0], seed=0).draw(number) for number in range(400)]
    assert [name.split("-")[0] for name in taken] == [str(draw.source) for draw in drawn]
    for name, draw in zip(taken, drawn, strict=True):
        bad = draw.source == 0 and draw.index % 3 == 0
        assert (name == f"{draw.source}-{draw.index}") != bad
    assert not {f"0-{number}" for number in range(0, 90, 3)} & set(taken)


def test_a_batch_names_its_records_and_their_sources() -> None:
    mixture = Mixture([90, 50], [1.0, 1.0], seed=0)
    sources = [Source(0, 90, broken=3), Source(1, 50)]
    for batch in islice(example_batches(BatchPlan(mixture, 4), sources, name_of, list), 20):
        assert batch.record_ids == batch.inputs
        assert batch.source_ids.tolist() == [int(name[0]) for name in batch.record_ids]


def test_the_log_names_a_hundred_skipped_records_and_all_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    skips: list[Skip] = []
    statistics = StreamStatistics(["only"], skips.append)
    with caplog.at_level(logging.WARNING):
        list(names([Source(0, 600, broken=2)], 600, statistics))
    assert statistics.skipped == len(skips) > 200
    assert sum(message.startswith("skipped record") for message in caplog.messages) == 100
    assert statistics.read()["skipped"] == len(skips)


def test_sorting_reads_every_record_once_more_in_the_main_process() -> None:
    source = Source(0, 64)
    mixture = Mixture([64], [1.0], seed=0)

    def length(draw: Draw) -> int:
        return len(source[draw.index].id)

    for window, reads in ((1, 1), (4, 2)):
        source.reads.clear()
        plan = BatchPlan(mixture, 4, sort_window=window, length=length)
        list(islice(example_batches(plan, [source], name_of, list), 16))
        assert set(source.reads.values()) == {reads}


def test_percentiles_of_lengths_are_accurate_to_9_percent() -> None:
    lengths = np.random.default_rng(0).integers(1, 5000, 4000)
    statistics = StreamStatistics(["only"])
    statistics.add(BatchFacts(10_000_000, [0] * 4000, lengths.tolist()))
    metrics = statistics.read()
    for name, share in (("length_p50", 50), ("length_p95", 95)):
        assert 1.0 <= metrics[name] / np.percentile(lengths, share) <= 1.1


def test_simplecache_keeps_complete_files_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MemoryFileSystem.store.clear()
    with ShardWriter(tmp_path / "data", source="s", licence="l", shard_size=2) as writer:
        for number in range(4):
            writer.write(Record(f"r{number}", [user("?"), assistant("!")]))
    system = fsspec.filesystem("memory")
    for path in (tmp_path / "data").iterdir():
        system.pipe(f"/cached/{path.name}", path.read_bytes())
    dataset = ShardDataset("simplecache::memory://cached")
    assert dataset[3].id == "r3"
    system.rm("/cached/train-00001.tar")
    assert dataset[2].id == "r2"


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_weights_and_limits_are_numbers_above_0(weight: Any) -> None:
    with pytest.raises(UserError, match="mixture: weight 1"):
        Mixture([3, 3], [1.0, weight], seed=0)
    if weight is not None:
        with pytest.raises(UserError, match="max_repeats 0"):
            Mixture([3, 3], [1.0, 1.0], seed=0, max_repeats=[weight, None])
    with pytest.raises(UserError, match="sum of all weights"):
        Mixture([3, 3], [1e308, 1e308], seed=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("world_size", 10**12),
        ("world_size", -1),
        ("world_size", None),
        ("first", -5),
        ("first", "0"),
        ("cursors", []),
        ("cursors", [[0, -1], [0, 0]]),
        ("cursors", [[0], [0]]),
        ("cursors", None),
        ("leftovers", [["a", 0]]),
        ("leftovers", 5),
    ],
)
def test_an_invalid_saved_position_is_refused(name: str, value: Any) -> None:
    """The position is read from a checkpoint, which is untrusted."""
    state = plan_state(WindowPlan(0, 2), [Cursor(1, 2), Cursor(0, 3)])
    assert resumed_plan(state, 1, 2)[1] == Cursor(0, 3)
    with pytest.raises(UserError, match="position in the data"):
        resumed_plan({**state, name: value}, 0, 2)
