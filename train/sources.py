"""The sources of a recipe: opened, with their order and the cache of their shards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.json_files import take_count
from ..common.paths import user_path
from ..data_pipelines.shards.node_cache import NodeCache
from ..data_pipelines.shards.reader import ShardDataset
from ..data_pipelines.shards.storage import is_url
from ..data_pipelines.stream.mixture import Mixture
from ..data_pipelines.stream.order import ORDER_VERSION, ComputedOrder, Order, ShardOrder, record_order
from .config.data import DataConfig

_GB = 10**9


def open_sources(data: DataConfig) -> list[ShardDataset]:
    """The datasets of all sources.

    Errors:
        UserError for one that is missing, empty, or mostly unreadable, and for a cache that is too small.
    """
    missing = [
        f"{name}: {source.path}"
        for name, source in data.sources.items()
        if not is_url(source.path) and not os.path.isdir(user_path(source.path))
    ]
    if missing:
        raise UserError(
            f"data.sources: no such folder: {', '.join(missing)}; write it with dualtoken prepare"
        )
    cache = NodeCache(Path(data.cache), int(data.cache_gb * _GB)) if data.cache else None
    sources = [ShardDataset(source.path, tolerant=True, cache=cache) for source in data.sources.values()]
    if cache is not None:
        _require_room(data, sources)
    return sources


def mixture_of(
    data: DataConfig, sources: Sequence[Any], seed: int, order_version: int = ORDER_VERSION
) -> Mixture:
    """The mixture of sources by weight, each in its order."""
    configs = list(data.sources.values())

    def order(number: int) -> Order:
        config, source = configs[number], sources[number]
        if config.shuffle == "shards":
            return ShardOrder(source.shard_lengths, config.shuffle_window, seed, number)
        return record_order(len(source), seed, number, order_version)

    # An empty source has no order; the mixture names it.
    orders = [order(number) for number in range(len(sources))] if all(map(len, sources)) else None
    lengths, weights = [len(source) for source in sources], [config.weight for config in configs]
    return Mixture(lengths, weights, seed, [config.max_repeats for config in configs], orders)


def order_state(mixture: Mixture) -> dict[str, Any]:
    """What a checkpoint has to know of the order; empty where all versions of it are the same."""
    computed = any(isinstance(order, ComputedOrder) for order in mixture.orders)
    return {"version": ORDER_VERSION} if computed else {}


def saved_order_version(state: Mapping[str, Any]) -> int:
    """The version of the order in `order_state`; 1 for a checkpoint that knows of none. UserError."""
    return take_count(state, "version", "the checkpoint's order of the data") if state else 1


def _require_room(data: DataConfig, sources: Sequence[ShardDataset]) -> None:
    """Raise UserError unless two windows of every source behind a URL fit the cache.

    While one window gives way to the next, ranks read from both.
    """
    needed = 0
    for config, source in zip(data.sources.values(), sources, strict=True):
        if is_url(config.path) and config.shuffle == "shards":
            sizes = sorted((shard["bytes"] for shard in source.manifest["shards"]), reverse=True)
            needed += sum(sizes[: 2 * config.shuffle_window])
    if needed > data.cache_gb * _GB:
        raise UserError(
            f"data.cache_gb is {data.cache_gb:g}, and two windows of shards take {needed / _GB:.3g} GB: "
            "give more, or a smaller shuffle_window"
        )
