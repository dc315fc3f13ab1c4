"""An order gives every record once an epoch, and is a function of (epoch, position) without much memory."""

import tracemalloc
from itertools import islice

import numpy as np
import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.stream.mixture import BatchPlan, Mixture
from dualtoken.data_pipelines.stream.order import (
    LARGEST_STORED,
    ComputedOrder,
    ShardOrder,
    StoredOrder,
    record_order,
)

LENGTHS = [40, 1, 7, 100, 64, 3, 0, 55, 80, 21]


@pytest.mark.parametrize("length", [1, 2, 3, 1000, LARGEST_STORED + 1])
def test_a_computed_order_is_a_permutation_that_changes_with_epoch_seed_and_source(length: int) -> None:
    def all_of(seed: int, source: int, epoch: int) -> list[int]:
        return ComputedOrder(length, seed, source).indices(epoch, np.arange(length)).tolist()

    assert sorted(all_of(0, 0, 0)) == list(range(length))
    if length >= 1000:
        others = [all_of(0, 0, 1), all_of(1, 0, 0), all_of(0, 1, 0)]
        assert all(np.mean(np.array(other) == all_of(0, 0, 0)) < 0.01 for other in others)


def test_a_computed_order_looks_random() -> None:
    """Neighbours are far apart, and every part of the epoch has its share of every part of the source."""
    length, parts = 200_000, 20
    indices = ComputedOrder(length, 3, 0).indices(0, np.arange(length))
    assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < 0.01
    assert np.abs(np.diff(indices)).mean() == pytest.approx(length / 3, rel=0.01)
    counts = np.histogram2d(np.arange(length), indices, bins=parts)[0]
    expected = length / parts**2
    assert ((counts - expected) ** 2 / expected).sum() < 1.2 * (parts - 1) ** 2


def test_the_order_of_a_hundred_million_records_takes_no_memory() -> None:
    tracemalloc.start()
    mixture = Mixture([10**8], [1.0], seed=1)
    draws = {mixture.draw(number).index for number in range(0, 400_000, 100)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(draws) == 4000
    assert peak < 16e6
    assert max(draws) > 0.99e8


def test_checkpoints_without_a_version_keep_the_stored_order() -> None:
    length = LARGEST_STORED + 5
    old, new = record_order(length, 7, 0, version=1), record_order(length, 7, 0)
    permutation = np.random.default_rng((7, 1, 0, 2)).permutation(length)
    assert [old.index(2, n) for n in range(100)] == permutation[:100].tolist()
    assert [new.index(2, n) for n in range(100)] != permutation[:100].tolist()
    assert isinstance(record_order(LARGEST_STORED, 7, 0), StoredOrder)
    with pytest.raises(UserError, match="version 3"):
        record_order(10, 7, 0, version=3)


@pytest.mark.parametrize("window", [1, 2, 3, 10, 50])
def test_every_epoch_of_a_shard_order_has_every_record_once(window: int) -> None:
    order, total = ShardOrder(LENGTHS, window, 5, 0), sum(LENGTHS)
    for epoch in (0, 1):
        assert sorted(order.index(epoch, n) for n in range(total)) == list(range(total))
    again = ShardOrder(LENGTHS, window, 5, 0)
    numbers = [total - 1, 0, total // 2, 3]
    assert [again.index(1, n) for n in numbers] == [order.index(1, n) for n in numbers]


def test_a_shard_order_reads_from_its_window_in_runs_and_mixes_them() -> None:
    records, count, window = 120, 30, 6
    order = ShardOrder([records] * count, window, 5, 0)
    indices = np.array([order.index(0, n) for n in range(records * count)])
    first_read: dict[int, int] = {}
    last_read: dict[int, int] = {}
    for number in range(count):  # as all shards are equal, a bin has as many records as a shard
        found = indices[number * records : (number + 1) * records]
        shards = found // records
        assert len(set(shards)) == window
        assert set(shards) == set(order.shards(0, number * records))
        for shard in set(shards):
            run = np.sort(found[shards == shard])
            assert len(run) == records / window
            assert run[-1] - run[0] == len(run) - 1
            first_read.setdefault(shard, number)
            last_read[shard] = number
        assert np.mean(np.diff(shards) != 0) > 0.6
    stays = [last_read[shard] - first_read[shard] + 1 for shard in first_read]
    assert sorted(stays)[: count - window + 1] == [window] * (count - window + 1)


@pytest.mark.parametrize("world", [1, 3])
def test_ranks_share_a_shard_order_and_resume_in_it(world: int) -> None:
    total = sum(LENGTHS)
    mixture = Mixture(
        [total, 50], [3.0, 1.0], 2, orders=[ShardOrder(LENGTHS, 3, 2, 0), StoredOrder(50, 2, 1)]
    )
    plans = [BatchPlan(mixture, 2, rank, world) for rank in range(world)]
    batches = [list(islice(plan.batches(), 120)) for plan in plans]
    drawn = [draw for step in zip(*batches, strict=True) for batch in step for draw in batch]
    assert sorted(draw.number for draw in drawn) == list(range(240 * world))
    assert [list(islice(plan.batches(70), 50)) for plan in plans] == [done[70:] for done in batches]
    shards = [draw.index for draw in sorted(drawn, key=lambda draw: draw.number) if draw.source == 0]
    if len(shards) >= total:
        assert sorted(shards[:total]) == list(range(total))
