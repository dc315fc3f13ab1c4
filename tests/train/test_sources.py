"""Sources are read in the order that the recipe names, and a resumed run keeps its order."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dualtoken.common.errors import UserError
from dualtoken.common.limits import problems
from dualtoken.data_pipelines.records import Record, assistant, user
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.data_pipelines.stream.order import ComputedOrder, ShardOrder, StoredOrder
from dualtoken.train import sources
from dualtoken.train.backend.resume import changes
from dualtoken.train.config.data import DataConfig, SourceConfig
from dualtoken.train.sources import mixture_of, open_sources, order_state, saved_order_version
from dualtoken.train.stream import Stream


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    with ShardWriter(tmp_path / "data", source="s", licence="l", shard_size=5) as writer:
        for number in range(28):
            writer.write(Record(f"r{number}", [user("?"), assistant(str(number))]))
    path = str(tmp_path / "data")
    return DataConfig(
        {"all": SourceConfig(path), "near": SourceConfig(path, shuffle="shards", shuffle_window=2)}
    )


def test_each_source_has_its_order(data: DataConfig) -> None:
    opened = open_sources(data)
    mixture = mixture_of(data, opened, seed=1)
    assert [type(order) for order in mixture.orders] == [StoredOrder, ShardOrder]
    indices = [draw.index for draw in map(mixture.draw, range(200)) if draw.source == 1][:28]
    assert sorted(indices) == list(range(28))
    assert len({index // 5 for index in indices[:5]}) <= 3  # of six shards
    assert order_state(mixture) == {}


class Long:
    def __len__(self) -> int:
        return 10**6


def test_a_run_continues_in_the_order_of_its_checkpoint(data: DataConfig) -> None:
    data = DataConfig({"all": data.sources["all"]})
    long: list[Any] = [Long()]
    recipe: Any = SimpleNamespace(data=data, seed=3, output="")
    world: Any = SimpleNamespace(rank=0, size=1)

    def stream() -> Stream:
        return Stream(recipe, world, long, mixture_of(data, long, recipe.seed))

    new, resumed, old = stream(), stream(), stream()
    state = new.order_state()
    assert state == {"version": 2}
    resumed.load_order_state(state)
    assert [resumed.mixture.draw(n) for n in range(9)] == [new.mixture.draw(n) for n in range(9)]
    old.load_order_state({})  # a checkpoint that was written before there were versions
    assert isinstance(new.mixture.orders[0], ComputedOrder)
    assert isinstance(old.mixture.orders[0], StoredOrder)
    assert old.order_state() == {}  # also of its own checkpoints
    with pytest.raises(UserError, match="version 7"):
        stream().load_order_state({"version": 7})
    with pytest.raises(UserError, match="order of the data"):
        saved_order_version({"version": "new"})


def test_a_cache_has_room_for_two_windows(data: DataConfig, tmp_path: Path) -> None:
    opened = open_sources(data)
    far = SourceConfig("s3://bucket/data", shuffle="shards", shuffle_window=2)
    size = max(shard["bytes"] for shard in opened[0].manifest["shards"])
    room = DataConfig({"far": far}, cache=str(tmp_path / "cache"), cache_gb=4 * size / 1e9)
    sources._require_room(room, opened[:1])
    small = DataConfig({"far": far}, cache=str(tmp_path / "cache"), cache_gb=3 * size / 1e9)
    with pytest.raises(UserError, match="smaller shuffle_window"):
        sources._require_room(small, opened[:1])


def test_settings_of_the_order_are_checked() -> None:
    wrong: Any = SourceConfig("x", shuffle="all", shuffle_window=0)
    assert len(problems(wrong, "data.sources.x")) == 2


def test_a_recipe_without_the_settings_of_the_order_has_their_defaults() -> None:
    before = {"data": {"sources": {"x": {"path": "a"}}, "cache_gb": 200.0}}
    now: Any = {
        "data": {"sources": {"x": {"path": "a", "shuffle": "records", "shuffle_window": 16}}, "cache": ""}
    }
    assert changes(before, now) == []
    now["data"]["sources"]["x"]["shuffle"] = "shards"
    assert [change.key for change in changes(before, now)] == ["data.sources.x.shuffle"]
