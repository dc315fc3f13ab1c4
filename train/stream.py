"""The data of a run: this rank's micro-batches of the recipe's mixture, and the position in it.

Without packing the position follows from the step number; checkpoints hold the order of a sorted window that
is not finished. With packing the number of rows depends on the records, so the position is a cursor (see
`data_pipelines.stream.packing`) that checkpoints hold for every rank.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ..common.errors import UserError, shown
from ..common.json_files import take, take_count, take_list
from ..data_pipelines.stream.loader import StreamBatch, example_batches
from ..data_pipelines.stream.mixture import BatchPlan, Draw, Mixture
from ..data_pipelines.stream.order import ORDER_VERSION
from ..data_pipelines.stream.packed_loader import PackedBatches, Packing
from ..data_pipelines.stream.packing import Cursor, WindowPlan, plan_state, resumed_plan
from ..data_pipelines.stream.statistics import Skip, StreamStatistics
from .backend.distributed import World
from .config.recipe import Recipe
from .objectives import Objective
from .objectives.base import Batch
from .sources import mixture_of, open_sources, order_state, saved_order_version


class Stream:
    """This rank's share of the recipe's data."""

    def __init__(self, recipe: Recipe, world: World, sources: list[Any], mixture: Mixture) -> None:
        self.recipe, self.world, self.sources, self.mixture = recipe, world, sources, mixture
        self.statistics = StreamStatistics(list(recipe.data.sources), self._note_skip)
        self.may_repack = False  # resume from a checkpoint that was packed differently, with the next windows
        self._metrics: dict[str, float] = {}
        self._resumed = False
        self._order_version = ORDER_VERSION
        self._plan = WindowPlan(world.rank, world.size)
        self._cursor = Cursor()
        self._position = 0  # micro-batches delivered
        self._sorted: dict[int, list[list[int]]] = {}  # see `BatchPlan`
        self._packed: PackedBatches | None = None

    @classmethod
    def open(cls, recipe: Recipe, world: World) -> Stream:
        """Open all sources. UserError for one that is missing, empty, or mostly unreadable."""
        sources = open_sources(recipe.data)
        return cls(recipe, world, sources, mixture_of(recipe.data, sources, recipe.seed))

    def manifests(self) -> dict[str, Mapping[str, Any]]:
        """The manifest of each source by name."""
        names = self.recipe.data.sources
        return {name: source.manifest for name, source in zip(names, self.sources, strict=True)}

    def fingerprints(self) -> dict[str, str]:
        """A digest of the records of each source by name; a resumed run requires equal ones."""
        return {name: _fingerprint(manifest) for name, manifest in self.manifests().items()}

    @property
    def is_packed(self) -> bool:
        return self.recipe.data.pack_length > 0

    # ---- batches

    def run(self, objective: Objective, start: int) -> Iterator[StreamBatch]:
        """An endless iterator of micro-batches from number ``start``, counted and timed.

        With packing it starts at the checkpoint's cursor instead.

        Errors:
            UserError if a resumed run has packing and its checkpoint does not.
        """
        if not self.is_packed:
            return self.statistics.timed(self._counted(self._plain(objective, start, self.statistics), start))
        if start and not self._resumed and self.may_repack:
            data = self.recipe.data
            self._skip_draws(start * data.micro_batch_size * self.world.size)
        elif start and not self._resumed:
            raise UserError(
                "data.pack_length is set, but the checkpoint was written without packing: remove "
                "pack_length, or give another output folder and init_from"
            )
        self._packed = self._packed_batches(objective, self.statistics)
        return self.statistics.timed(self._packed)

    def batches(self, objective: Objective, start: int) -> Iterator[Batch]:
        """A preview of the micro-batches from number ``start`` (with packing: from the run's cursor)."""
        packed = self.is_packed
        batches = self._packed_batches(objective, None) if packed else self._plain(objective, start, None)
        return (batch.inputs for batch in batches)

    def _counted(self, batches: Iterator[StreamBatch], start: int) -> Iterator[StreamBatch]:
        for self._position, batch in enumerate(batches, start + 1):
            self._sorted.pop(self._position // self.recipe.data.sort_window - 1, None)
            yield batch

    def _plain(
        self, objective: Objective, start: int, statistics: StreamStatistics | None
    ) -> Iterator[StreamBatch]:
        data = self.recipe.data

        def length(draw: Draw) -> int:
            try:
                return objective.record_length(self.sources[draw.source][draw.index])
            except (OSError, ValueError):
                return 0  # the loader will skip and report it

        plan = self._batch_plan(length)
        return example_batches(
            plan,
            self.sources,
            objective.examples.prepare,
            objective.examples.collate,
            start=start,
            num_workers=data.num_workers,
            statistics=statistics,
        )

    def _batch_plan(self, length: Callable[[Draw], int] | None = None) -> BatchPlan:
        data, world = self.recipe.data, self.world
        return BatchPlan(
            self.mixture,
            data.micro_batch_size,
            rank=world.rank,
            world_size=world.size,
            sort_window=data.sort_window,
            length=length,
            sorted_windows=self._sorted,
        )

    def _packed_batches(self, objective: Objective, statistics: StreamStatistics | None) -> PackedBatches:
        data = self.recipe.data
        return PackedBatches(
            self.mixture,
            self._plan,
            Packing(data.pack_length, data.pack_window),
            self.sources,
            prepare=partial(objective.examples.prepare_pieces, length=data.pack_length),
            collate=objective.collate_packed,
            rows=data.micro_batch_size,
            cursor=self._packed.cursor if self._packed else self._cursor,
            num_workers=data.num_workers,
            statistics=statistics,
        )

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """The cursors, or the orders of unfinished sorted windows, of all ranks. Every rank calls this."""
        if not self.is_packed:
            return self._sorted_state()
        cursors = self.world.gather(self._packed.cursor if self._packed else self._cursor)
        return {**plan_state(self._plan, cursors), "packing": self._packing_settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`. UserError if the recipe packs differently."""
        if "packing" not in state:
            if not self.is_packed:
                self._load_sorted_state(state)
            return  # with packing, `run` decides
        # Checkpoints from before there were pieces do not name `long_text`.
        packing = {
            "long_text": "skip",
            **take(state, "packing", dict, "the checkpoint's position in the data"),
        }
        if packing != self._packing_settings() and self.may_repack:
            if self.is_packed:
                begun = resumed_plan(state, 0, len(state["cursors"]) + 1)[0].first
                window = take_count(packing, "pack_window", "the checkpoint's packing")
                self._skip_draws(begun * window)
            return
        if packing != self._packing_settings():
            raise UserError(
                f"the checkpoint was written with {shown(packing)} and the recipe has "
                f"{self._packing_settings()}: a resumed run must pack as before, so set data.* back or give "
                "another output folder"
            )
        self._plan, self._cursor = resumed_plan(state, self.world.rank, self.world.size)
        self._resumed = True

    def _skip_draws(self, number: int) -> None:
        """Begin with the first window without any of the first `number` draws."""
        first = -(-number // self.recipe.data.pack_window)
        self._plan, self._resumed = WindowPlan(self.world.rank, self.world.size, first), True

    def _packing_settings(self) -> dict[str, Any]:
        data = self.recipe.data
        settings: dict[str, Any] = {"pack_length": data.pack_length, "pack_window": data.pack_window}
        settings["long_text"] = data.long_text
        return settings | ({"max_length": data.max_length} if data.max_length else {})

    def _sorted_state(self) -> dict[str, Any]:
        """Empty where the next micro-batch begins a window."""
        data = self.recipe.data
        window, offset = divmod(self._position, data.sort_window)
        if not offset:
            return {}
        orders = self.world.gather(self._sorted.get(window, []))
        return {"window": window, "micro_batch_size": data.micro_batch_size, "orders": orders}

    def _load_sorted_state(self, state: Mapping[str, Any]) -> None:
        """Keep the order of the window that was not finished, if this run has the same windows."""
        where = "the checkpoint's position in the data"
        window = take_count(state, "window", where)
        orders = take_list(state, "orders", _is_order, "micro-batches of draw numbers", where)
        same = take(state, "micro_batch_size", int, where) == self.recipe.data.micro_batch_size
        if not same or len(orders) != self.world.size:
            return  # the window holds other records
        order = orders[self.world.rank]
        if order and sorted(n for batch in order for n in batch) != list(self._batch_plan().numbers(window)):
            raise UserError(f"{where}: its micro-batches are not those of window {window}")
        self._sorted = {window: order} if order else {}

    def order_state(self) -> dict[str, Any]:
        """The version of the records' order for checkpoints; empty where all versions are the same."""
        return {} if self._order_version == 1 else order_state(self.mixture)

    def load_order_state(self, state: Mapping[str, Any]) -> None:
        """Continue in the order of `order_state`. UserError for an unknown version."""
        self._order_version = saved_order_version(state)
        self.mixture = mixture_of(self.recipe.data, self.sources, self.recipe.seed, self._order_version)

    # ---- metrics

    def metrics(self) -> dict[str, float]:
        """Metrics since the last call, over all ranks, as data/NAME; every rank calls this."""
        self._metrics = self.statistics.read(lambda values: self.world.sum(values.to(self.world.device)))
        return {f"data/{name}": value for name, value in self._metrics.items()}

    def summary(self) -> str:
        """The last `metrics` in short, for the progress bar."""
        parts = []
        if "fill_share" in self._metrics:
            parts.append(f"filled {self._metrics['fill_share']:.0%}")
        parts.append(f"waiting {self._metrics.get('wait_share', 0.0):.1%}")
        for name in ("skipped", "retried"):
            if self._metrics.get(name):
                parts.append(f"{name} {self._metrics[name]:.0f}")
        return " ".join(parts)

    def _note_skip(self, skip: Skip) -> None:
        """Append a skipped record to ``skipped-records-RANK.jsonl`` in the run's folder."""
        line = {**asdict(skip), "source": list(self.recipe.data.sources)[skip.source]}
        folder = Path(self.recipe.output)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"skipped-records-{self.world.rank}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _is_order(order: Any) -> bool:
    """Whether it is a list of lists of integers."""
    batches = order if isinstance(order, list) else [None]
    return all(isinstance(batch, list) and all(type(n) is int for n in batch) for batch in batches)


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    """A digest of the names, splits, records and contents of a manifest's shards."""
    keys = ("file", "split", "records", "sha256")
    shards = [[shard.get(key) for key in keys] for shard in manifest["shards"]]
    return hashlib.sha256(json.dumps(shards, default=str).encode()).hexdigest()
