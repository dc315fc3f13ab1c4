"""Packed rows: full, complete, and the same from any cursor, for any number of workers and ranks."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import Record, RecordError, assistant
from dualtoken.data_pipelines.stream.mixture import Mixture
from dualtoken.data_pipelines.stream.packed_loader import PackedBatches, Packing
from dualtoken.data_pipelines.stream.packing import START, Cursor, WindowPlan, pack, plan_state, resumed_plan
from dualtoken.data_pipelines.stream.statistics import StreamStatistics

SIZES = [200, 90]
LENGTH, WINDOW, ROWS = 64, 32, 3


class Numbered:
    """Records named by source and number; every `broken`-th cannot be read."""

    def __init__(self, source: int, size: int, broken: int = 0) -> None:
        self.source, self.size, self.broken = source, size, broken

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Record:
        if self.broken and index % self.broken == 0:
            raise RecordError(f"record {index} is broken")
        return Record(f"{self.source}-{index}", [assistant("x")])


@dataclass(frozen=True)
class Example:
    name: str
    draw: int
    input_ids: np.ndarray


def prepare(record: Record, draw: int) -> Example:
    length = 3 + int(np.random.default_rng(draw).integers(30))
    return Example(record.id, draw, np.zeros(length, dtype=np.int64))


def collate(rows: list[list[Example]], length: int) -> list[list[tuple[str, int]]]:
    assert all(sum(len(example.input_ids) for example in row) <= length for row in rows)
    return [[(example.name, example.draw) for example in row] for row in rows]


def stream(plan: WindowPlan | None = None, cursor: Cursor = START, **options: Any) -> PackedBatches:
    sources = options.pop("sources", [Numbered(number, size) for number, size in enumerate(SIZES)])
    mixture = Mixture([len(source) for source in sources], [2.0, 1.0][: len(sources)], seed=4)
    packing = Packing(LENGTH, WINDOW)
    settings = {"rows": ROWS, "prepare": prepare, **options}
    return PackedBatches(
        mixture, plan or WindowPlan(), packing, sources, collate=collate, cursor=cursor, **settings
    )


def rows_of(batches: PackedBatches, count: int) -> list[Any]:
    return [batch.inputs for batch in islice(batches, count)]


@pytest.mark.parametrize("capacity", [30, 64])
def test_rows_hold_every_item_once_within_the_capacity(capacity: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 31, size=200).tolist()
    rows = pack(lengths, capacity)
    assert sorted(item for row in rows for item in row) == list(range(200))
    assert all(sum(lengths[item] for item in row) <= capacity for row in rows)
    filled = sorted(sum(lengths[item] for item in row) for row in rows)
    assert filled[0] + filled[1] > capacity  # no two rows would fit into one
    assert rows == pack(lengths, capacity)


def test_equal_lengths_fill_their_rows() -> None:
    assert pack([16] * 8, 64) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(ValueError, match="does not fit"):
        pack([65], 64)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resumed_equals_uninterrupted(stop: int, workers: int) -> None:
    plan = WindowPlan(1, 2)
    complete = rows_of(stream(plan), 16)
    first = stream(plan)
    assert rows_of(first, stop) == complete[:stop]
    assert rows_of(stream(plan, first.cursor, num_workers=workers), 16 - stop) == complete[stop:]


def delivered(batches: Sequence[Any]) -> list[int]:
    return [draw for batch in batches for row in batch for _, draw in row]


def test_ranks_are_disjoint_and_complete() -> None:
    ranks = [stream(WindowPlan(rank, 3)) for rank in range(3)]
    draws = [delivered(rows_of(rank, 20)) for rank in ranks]
    counts = Counter(draw for rank in draws for draw in rank)
    assert set(counts.values()) == {1}
    windows_done = min(rank.cursor[0] for rank in ranks)
    assert set(range(windows_done * 3 * WINDOW)) <= set(counts)


@pytest.mark.parametrize("sizes", [(2, 3, 1), (3, 1, 2), (1, 4, 4)])
def test_another_number_of_ranks_resumes_without_loss(sizes: tuple[int, ...]) -> None:
    """Several changes in succession; every draw is delivered exactly once until the last cursors."""
    plans = [WindowPlan(rank, sizes[0]) for rank in range(sizes[0])]
    cursors = [START] * sizes[0]
    draws: list[int] = []
    for phase, size in enumerate(sizes):
        if phase:
            state = plan_state(plans[0], cursors)
            resumed = [resumed_plan(state, rank, size) for rank in range(size)]
            plans, cursors = [plan for plan, _ in resumed], [cursor for _, cursor in resumed]
        for rank in range(size):
            packed = stream(plans[rank], cursors[rank])
            draws += delivered(rows_of(packed, 7))
            cursors[rank] = packed.cursor
    counts = Counter(draws)
    assert set(counts.values()) == {1}
    pending = min(plan.window(ordinal)[0] for plan, (ordinal, *_) in zip(plans, cursors, strict=True))
    assert pending > 0
    assert set(range(pending * WINDOW)) <= set(counts)


def test_unusable_records_are_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Broken records, and records longer than a row; nothing else is missing."""

    def long_records(record: Record, draw: int) -> Example:
        example = prepare(record, draw)
        return Example(example.name, draw, np.zeros(LENGTH + 1)) if draw % 10 == 0 else example

    statistics = StreamStatistics(["good", "bad"])
    sources = [Numbered(0, 200), Numbered(1, 90, broken=3)]
    packed = stream(sources=sources, prepare=long_records, statistics=statistics)
    batches = rows_of(packed, 10)
    done = packed.cursor[0] * WINDOW
    draws = [Mixture(SIZES, [2.0, 1.0], seed=4).draw(n) for n in range(done)]
    bad = {d.number for d in draws if d.number % 10 == 0 or (d.source == 1 and d.index % 3 == 0)}
    assert set(delivered(batches)) & set(range(done)) == set(range(done)) - bad
    assert statistics.skipped >= len(bad) > 0
    assert "source bad: record 3 is broken" in caplog.text or "record 0 is broken" in caplog.text
    assert f"65 tokens, more than data.pack_length {LENGTH}" in caplog.text


def test_a_batch_names_the_record_and_source_of_every_position() -> None:
    for batch in islice(stream(), 6):
        assert batch.record_ids == [name for row in batch.inputs for name, _ in row]
        for row, sources in zip(batch.inputs, batch.source_ids.tolist(), strict=True):
            lengths = [len(prepare(Record(name, []), draw).input_ids) for name, draw in row]
            expected = [int(name[0]) for (name, _), n in zip(row, lengths, strict=True) for _ in range(n)]
            assert sources == expected + [0] * (LENGTH - len(expected))


def test_a_stream_without_usable_records_ends_with_a_reason() -> None:
    with pytest.raises(UserError, match="is broken"):
        next(stream(sources=[Numbered(0, 50, broken=1)]))


def test_metrics_add_up() -> None:
    statistics = StreamStatistics(["a", "b"])
    batches = rows_of(stream(statistics=statistics), 12)
    metrics = statistics.read()
    names = [name for batch in batches for row in batch for name, _ in row]
    assert metrics["share/a"] == pytest.approx(sum(name.startswith("0") for name in names) / len(names))
    lengths = [len(prepare(Record("x", []), draw).input_ids) for draw in delivered(batches)]
    assert metrics["length_mean"] == pytest.approx(np.mean(lengths))
    assert metrics["length_p50"] == pytest.approx(np.percentile(lengths, 50), rel=0.15)
    assert metrics["token_share/a"] + metrics["token_share/b"] == pytest.approx(1.0)
    assert "share/a" not in statistics.read()  # nothing since


def prepare_pieces(record: Record, draw: int) -> list[Example]:
    """Up to four pieces of every record; every fifth draw has one that is too long."""
    lengths = np.random.default_rng(draw).integers(3, 40, size=1 + draw % 4)
    lengths[-1] += LENGTH if draw % 5 == 0 else 0
    return [Example(f"{record.id}.{n}", draw, np.zeros(size, int)) for n, size in enumerate(lengths)]


@pytest.mark.parametrize("done", [1, 7, 20])
def test_pieces_of_records_are_packed_once_and_resumed_within_a_window(done: int) -> None:
    complete = rows_of(stream(prepare=prepare_pieces), 40)
    delivered = [piece for batch in complete for row in batch for piece in row]
    assert len(set(delivered)) == len(delivered)
    assert not [draw for _, draw in delivered if draw % 5 == 0]
    whole = {draw for _, draw in delivered if draw < WINDOW}
    assert whole == {draw for draw in range(WINDOW) if draw % 5}
    assert all(sum(one == draw for _, one in delivered) == 1 + draw % 4 for draw in whole)
    first = stream(prepare=prepare_pieces)
    rows_of(first, done)
    state = json.loads(json.dumps(plan_state(WindowPlan(), [first.cursor])))
    plan, cursor = resumed_plan(state, 0, 1)
    assert rows_of(stream(plan, cursor, prepare=prepare_pieces), 40 - done) == complete[done:]
