"""The mixture is a pure function of (seed, draw number); ranks share the draws without overlap."""

from collections import Counter
from itertools import islice

import pytest

from dualtoken.data_pipelines.mixture import BatchPlan, Mixture
from dualtoken.tokenizer.errors import UserError


def test_every_epoch_of_a_source_visits_every_record_once() -> None:
    mixture = Mixture([7, 5], [2.0, 1.0], seed=3)
    draws = [mixture.draw(n) for n in range(200)]
    for source, length in enumerate([7, 5]):
        order = [draw.index for draw in draws if draw.source == source]
        for start in range(0, len(order) - length, length):
            assert sorted(order[start : start + length]) == list(range(length))


def test_shares_follow_the_weights() -> None:
    mixture = Mixture([10, 10, 10], [6, 3, 1], seed=0)
    counts = Counter(mixture.draw(n).source for n in range(20_000))
    assert [round(counts[s] / 20_000, 2) for s in range(3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


def test_a_draw_does_not_depend_on_what_was_drawn_before() -> None:
    forward, backward = Mixture([11, 30], [1, 2], seed=1), Mixture([11, 30], [1, 2], seed=1)
    numbers = [0, 5, 65_535, 65_536, 65_537, 200_000]
    expected = {n: forward.draw(n) for n in numbers}
    assert {n: backward.draw(n) for n in reversed(numbers)} == expected


@pytest.mark.parametrize("window", [1, 4])
def test_a_resumed_plan_continues_where_the_other_stopped(window: int) -> None:
    mixture = Mixture([50, 20], [1, 1], seed=5)
    plan = BatchPlan(mixture, 3, rank=1, world_size=2, sort_window=window, length=lambda draw: draw.index)
    whole = list(islice(plan.batches(), 23))
    assert list(islice(plan.batches(start=9), 14)) == whole[9:]


@pytest.mark.parametrize("window", [1, 4])
def test_ranks_are_disjoint_and_together_complete(window: int) -> None:
    mixture = Mixture([1000], [1], seed=5)
    batches = 8
    numbers = [
        draw.number
        for rank in range(3)
        for batch in islice(
            BatchPlan(mixture, 2, rank, 3, window, lambda draw: draw.index).batches(), batches
        )
        for draw in batch
    ]
    assert sorted(numbers) == list(range(3 * 2 * batches))


def test_sorted_windows_put_like_lengths_together() -> None:
    mixture = Mixture([1000], [1], seed=2)
    plan = BatchPlan(mixture, 4, sort_window=16, length=lambda draw: draw.index)
    spread = [
        max(d.index for d in batch) - min(d.index for d in batch) for batch in islice(plan.batches(), 16)
    ]
    assert sum(spread) / len(spread) < 100  # 4 random records of 1000 spread over 600 on average


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(UserError, match="source number 1"):
        Mixture([3, 0], [1, 1], seed=0)
