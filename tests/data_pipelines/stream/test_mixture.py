"""The mixture is a pure function of (seed, draw number); ranks share the draws without overlap."""

from collections import Counter
from itertools import islice

import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.stream.mixture import BatchPlan, Mixture


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


def test_a_draw_does_not_depend_on_earlier_draws() -> None:
    forward, backward = Mixture([11, 30], [1, 2], seed=1), Mixture([11, 30], [1, 2], seed=1)
    numbers = [0, 5, 65_535, 65_536, 65_537, 200_000]
    expected = {n: forward.draw(n) for n in numbers}
    assert {n: backward.draw(n) for n in reversed(numbers)} == expected


@pytest.mark.parametrize("window", [1, 4])
def test_a_resumed_plan_continues_where_the_other_stopped(window: int) -> None:
    mixture = Mixture([50, 20], [1, 1], seed=5)
    plan = BatchPlan(mixture, 3, rank=1, world_size=2, sort_window=window, length=lambda draw: draw.index)
    complete = list(islice(plan.batches(), 23))
    assert list(islice(plan.batches(start=9), 14)) == complete[9:]


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


def test_sorted_windows_group_similar_lengths() -> None:
    mixture = Mixture([1000], [1], seed=2)
    plan = BatchPlan(mixture, 4, sort_window=16, length=lambda draw: draw.index)
    spread = [
        max(d.index for d in batch) - min(d.index for d in batch) for batch in islice(plan.batches(), 16)
    ]
    assert sum(spread) / len(spread) < 100  # 4 random records of 1000 spread over 600 on average


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(UserError, match="source number 1"):
        Mixture([3, 0], [1, 1], seed=0)


def test_a_limited_source_gives_its_share_to_the_others() -> None:
    """After its last repeat, which is complete; earlier draws are those without a limit."""
    free = Mixture([10, 300, 1000], [2.0, 1.0, 1.0], seed=7)
    limited = Mixture([10, 300, 1000], [2.0, 1.0, 1.0], seed=7, max_repeats=[3, 2.5, None])
    draws = [limited.draw(n) for n in range(150_000)]
    counts = Counter((draw.source, draw.index) for draw in draws)
    assert {n for (source, _), n in counts.items() if source == 0} == {3}
    assert {n for (source, _), n in counts.items() if source == 1} == {2, 3}
    assert sum(n for (source, _), n in counts.items() if source == 1) == 750
    end = max(draw.number for draw in draws if draw.source == 0) + 1
    assert draws[:end] == [free.draw(n) for n in range(end)]
    second_end = max(draw.number for draw in draws if draw.source == 1)
    between = Counter(draw.source for draw in draws[end:second_end])
    assert between[1] / between[2] == pytest.approx(1.0, rel=0.15)
    backward = Mixture([10, 300, 1000], [2.0, 1.0, 1.0], seed=7, max_repeats=[3, 2.5, None])
    assert [backward.draw(n) for n in (140_000, 65_536, 5)] == [draws[n] for n in (140_000, 65_536, 5)]


def test_an_endless_mixture_needs_a_source_without_limit() -> None:
    with pytest.raises(UserError, match="at least one"):
        Mixture([3, 4], [1, 1], seed=0, max_repeats=[1, 2])
