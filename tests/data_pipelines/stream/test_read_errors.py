"""Reads that fail for a moment, for a whole run or for ever: no record comes twice or is lost unnamed."""

from __future__ import annotations

import errno
import logging
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import Record, RecordError, assistant, user
from dualtoken.data_pipelines.shards import retries
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.data_pipelines.stream.loader import example_batches
from dualtoken.data_pipelines.stream.mixture import BatchPlan, Draw, Mixture
from dualtoken.data_pipelines.stream.packed_loader import PackedBatches, Packing
from dualtoken.data_pipelines.stream.packing import START, WindowPlan, plan_state, resumed_plan
from dualtoken.data_pipelines.stream.statistics import Skip, StreamStatistics

from .test_packing import LENGTH, collate, prepare

SIZE, WINDOW, ROWS = 96, 32, 2
BRIEF, LASTING = {3, 40, 41, 77}, {7, 50}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "WAITS", (0.0, 0.0))


class Faulty(ShardDataset):
    """Shards of which the first read of some records fails, and every read of others, in each process."""

    brief: set[int] = set()
    lasting: set[int] = set()

    def _read_once(self, number: int, offset: int, length: int) -> bytes:
        offsets = [self._indexes[number].span(one)[0] for one in range(len(self._indexes[number]))]
        index = int(self._starts[number]) + offsets.index(offset)
        if index in self.lasting:
            raise OSError(errno.EIO, "Input/output error")
        if index in self.brief:
            self.brief = self.brief - {index}
            raise OSError(errno.ESTALE, "Stale file handle")
        return super()._read_once(number, offset, length)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "data"
    with ShardWriter(folder, source="s", licence="l", shard_size=40) as writer:
        for number in range(SIZE):
            writer.write(Record(f"r{number}", [user("?"), assistant(str(number))]))
    return folder


def faulty(folder: Path, brief: set[int] = BRIEF, lasting: set[int] = LASTING) -> Faulty:
    dataset = Faulty(folder)
    dataset.brief, dataset.lasting = brief, lasting
    return dataset


def packed(source: Any, statistics: StreamStatistics, cursor: Any = START, **options: Any) -> PackedBatches:
    return PackedBatches(
        Mixture([SIZE], [1.0], seed=0),
        options.pop("plan", WindowPlan()),
        Packing(LENGTH, WINDOW),
        [source],
        prepare=prepare,
        collate=collate,
        rows=ROWS,
        cursor=cursor,
        statistics=statistics,
        **options,
    )


def counting() -> tuple[StreamStatistics, list[Skip]]:
    skips: list[Skip] = []
    return StreamStatistics(["only"], skips.append), skips


def taken(batches: Any, count: int) -> list[Any]:
    return [batch.inputs for batch in islice(batches, count)]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_brief_errors_change_nothing_and_lasting_ones_are_named(
    kind: str, workers: int, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Resumed equals uninterrupted, and each record of an epoch is delivered or named exactly once."""

    def run(source: Any, start: Any, count: int) -> tuple[list[Any], Any, list[Skip], int]:
        statistics, skips = counting()
        if kind == "packed":
            stream = packed(source, statistics, start or START, num_workers=workers)
            return taken(stream, count), stream.cursor, skips, statistics.retried
        plan = BatchPlan(Mixture([SIZE], [1.0], seed=0), 4)
        batches = example_batches(plan, [source], name_and_draw, list, start or 0, workers, statistics)
        return taken(batches, count), (start or 0) + count, skips, statistics.retried

    total = SIZE // 4 if kind == "plain" else 60
    with caplog.at_level(logging.WARNING):
        whole, _, skips, retried = run(faulty(folder), None, total)
    without, *_ = run(faulty(folder, brief=set()), None, total)
    assert whole == without
    assert {skip.index for skip in skips} >= LASTING
    assert len(BRIEF) <= retried <= len(BRIEF) * max(1, workers) * 3
    assert "record 3 of 'train-00000.tar': read after 1 failed attempts" in caplog.text
    for stop in (3, 10):
        first, position, _, _ = run(faulty(folder), None, stop)
        rest, *_ = run(faulty(folder), position, total - stop)
        assert first + rest == whole
    if kind == "packed":
        draws = Counter(draw for batch in whole for row in batch for _, draw in row)
        assert set(draws.values()) == {1}
        mixture = Mixture([SIZE], [1.0], seed=0)
        missing = {mixture.draw(number).index for number in set(range(SIZE)) - set(draws)}
        assert missing == LASTING


def name_and_draw(record: Record, draw: int) -> tuple[str, int]:
    return record.id, draw


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_packed_rows_survive_errors_that_end_before_the_run_resumes(
    ranks: int, workers: int, folder: Path
) -> None:
    """Storage fails during the first run of two ranks and is whole again when one, two or three resume."""
    broken = set(range(0, SIZE, 5))
    statistics, skips = counting()
    plans = [WindowPlan(rank, 2) for rank in range(2)]
    draws: list[int] = []
    cursors = []
    for plan in plans:
        stream = packed(
            faulty(folder, set(), broken), statistics, plan=plan, num_workers=workers if plan.rank else 0
        )
        draws += delivered(taken(stream, 3))
        cursors.append(stream.cursor)
    state = plan_state(plans[0], cursors)
    assert state["layouts"]
    for _ in range(2):  # the second time at once: what was begun and not delivered is still kept
        resumed = [resumed_plan(state, rank, ranks) for rank in range(ranks)]
        state = plan_state(resumed[0][0], [cursor for _, cursor in resumed])
    pending = []
    for plan, cursor in resumed:
        stream = packed(faulty(folder, set(), set()), statistics, cursor, plan=plan)
        draws += delivered(taken(stream, 12))
        pending.append(plan.window(stream.cursor.ordinal)[0])
    counts = Counter(draws)
    assert set(counts.values()) == {1}
    mixture = Mixture([SIZE], [1.0], seed=0)
    finished = set(range(min(pending) * WINDOW))
    assert len(finished) >= 4 * WINDOW
    missing = [mixture.draw(number).index for number in sorted(finished - set(counts))]
    assert missing
    assert set(missing) <= broken & {skip.index for skip in skips}


def delivered(batches: list[list[list[tuple[str, int]]]]) -> list[int]:
    return [draw for batch in batches for row in batch for _, draw in row]


def test_a_saved_layout_of_another_window_is_refused(folder: Path) -> None:
    statistics, _ = counting()
    stream = packed(faulty(folder), statistics)
    taken(stream, 2)
    state = plan_state(WindowPlan(), [stream.cursor])
    window, rows = state["layouts"][0]
    for wrong in (
        [[*rows[0], WINDOW * (window + 1)]],
        [rows[0], rows[0]],
        [[n for row in rows for n in row]],
    ):
        plan, cursor = resumed_plan({**state, "layouts": [[window, wrong]]}, 0, 1)
        with pytest.raises(UserError, match="the checkpoint's position in the data"):
            taken(packed(faulty(folder), statistics, cursor, plan=plan), 1)
    for layouts in ("x", [[0]], [[-1, []]], [[0, [["a"]]]], [[0, 5]]):
        with pytest.raises(UserError, match="layouts"):
            resumed_plan({**state, "layouts": layouts}, 0, 1)
    old = {key: value for key, value in state.items() if key != "layouts"}
    assert resumed_plan(old, 0, 1)[1][:2] == stream.cursor[:2]


def test_a_sorted_window_keeps_its_order_when_a_length_was_not_readable() -> None:
    mixture = Mixture([SIZE], [1.0], seed=0)
    sizes = np.random.default_rng(0).integers(1, 100, SIZE)

    def plan(unreadable: set[int], known: dict[int, list[list[int]]]) -> BatchPlan:
        def length(draw: Draw) -> int:
            return 0 if draw.index in unreadable else int(sizes[draw.index])

        return BatchPlan(mixture, 4, sort_window=6, length=length, sorted_windows=known)

    first = plan(set(range(0, SIZE, 7)), {})
    whole = [[draw.number for draw in batch] for batch in islice(first.batches(), 12)]
    resumed = plan(set(), {1: first.sorted_windows[1]})
    assert [[draw.number for draw in batch] for batch in islice(resumed.batches(8), 4)] == whole[8:]
    again = plan(set(), {})
    assert [[draw.number for draw in batch] for batch in islice(again.batches(8), 4)] != whole[8:]


def test_reads_are_tried_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", waits.append)
    monkeypatch.setattr(retries, "WAITS", (0.1, 1.0, 5.0))
    calls: list[int] = []

    def failing(times: int, error: OSError) -> Any:
        calls.clear()

        def read() -> str:
            calls.append(1)
            if len(calls) <= times:
                raise error
            return "data"

        return read

    with retries.collecting_retries() as found:
        assert retries.retried(failing(3, TimeoutError("slow")), "a shard") == "data"
    assert [(one.what, one.failures, one.reason) for one in found] == [("a shard", 3, "slow")]
    assert all(0.5 <= wait / nominal <= 1.5 for wait, nominal in zip(waits, (0.1, 1.0, 5.0), strict=True))
    with pytest.raises(TimeoutError):
        retries.retried(failing(4, TimeoutError("slow")), "a shard")
    assert len(calls) == 4
    for error in (FileNotFoundError("gone"), PermissionError("no")):
        with pytest.raises(type(error)):
            retries.retried(failing(1, error), "a shard")
        assert len(calls) == 1


def test_a_shard_that_keeps_failing_is_tried_once_a_record_until_it_answers(folder: Path) -> None:
    dataset = faulty(folder, set(), set(range(40)))
    attempts: Counter[int] = Counter()
    once = dataset._read_once

    def counted(number: int, offset: int, length: int) -> bytes:
        attempts[offset] += 1
        return once(number, offset, length)

    dataset._read_once = counted  # type: ignore[method-assign]
    for index in range(3):
        with pytest.raises(RecordError, match="Input/output error"):
            dataset[index]
    assert list(attempts.values()) == [3, 1, 1]
    dataset.lasting = {5}
    assert dataset[4].id == "r4"
    with pytest.raises(RecordError):
        dataset[5]
    assert list(attempts.values()) == [3, 1, 1, 1, 3]


def test_a_remote_read_that_fails_or_is_short_is_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    MemoryFileSystem.store.clear()
    for path in folder.iterdir():
        fsspec.filesystem("memory").pipe(f"/bucket/{path.name}", path.read_bytes())
    dataset = ShardDataset("memory://bucket")
    cat, answers = MemoryFileSystem.cat_file, iter(["error", "short", "whole"])

    def unreliable(self: Any, path: str, start: Any = None, end: Any = None, **given: Any) -> bytes:
        answer = next(answers, "whole")
        if answer == "error":
            raise RuntimeError("503 slow down")  # no OSError, as with some protocols
        return cat(self, path, start, end - 1 if answer == "short" else end, **given)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", unreliable)
    assert dataset[5].id == "r5"
    assert "record 5 of 'train-00000.tar': read after 2 failed attempts" in caplog.text
    assert "503 slow down" in caplog.text
