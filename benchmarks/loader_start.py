"""The start of the data loader with an index of 10⁸ records: seconds and memory of a node of eight processes.

The folder is synthetic: a manifest, the index of all shards, and tars that have their size and nothing else
(holes in sparse files take no disk). Every process imports the package, waits for the others, opens the
source, makes the mixture and draws its first micro-batch, all of them at the same time. Memory is the
proportional set size (PSS) of all processes together, in which a page that all share counts once; what the
imported packages take is stated apart. The plain reference in the same run is an index as arrays in every
process, loaded from one .npy file, with a stored permutation of all records: measured in a single process,
which has the disk for itself, and its memory counted eight times.

Examples:
  python benchmarks/loader_start.py                     # 10⁷ records
  python benchmarks/loader_start.py --size full         # 10⁸ records
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measure import argument_parser, report

from dualtoken.data_pipelines.shards.packed_index import write_packed_index
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.tar_index import TarIndex
from dualtoken.data_pipelines.shards.writer import build_manifest, write_manifest
from dualtoken.data_pipelines.stream.mixture import BatchPlan, Draw, Mixture
from dualtoken.data_pipelines.stream.order import ShardOrder

RANKS, MICRO_BATCH = 8, 32
PLAIN = "arrays"
_BLOCK = 512
_SAMPLE_BLOCKS = 6  # a record of 3 kB
Opened = tuple[Any, list[Draw]]


@dataclass(frozen=True)
class Size:
    """Records in all, and in each shard."""

    records: int
    shard: int


SIZES = {"small": Size(10**7, 10_000), "full": Size(10**8, 10_000)}


def main() -> None:
    args = argument_parser(__doc__, SIZES, "starts", 1).parse_args()
    size = SIZES[args.size]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_folder(folder, size)
        ways = {"records": open_records, "shards": open_shards, PLAIN: open_arrays}
        measured = {
            name: [node(open_one, folder, 1 if name == PLAIN else RANKS) for _ in range(args.repeats)]
            for name, open_one in ways.items()
        }
    report("loader_start", [_case(name, measured, size) for name in ways if name != PLAIN])


def make_folder(folder: Path, size: Size) -> None:
    """A folder of shards without their contents, and the reference's arrays."""
    count, nbytes = size.records // size.shard, size.shard * _SAMPLE_BLOCKS * _BLOCK
    offsets = np.arange(size.shard, dtype=np.int64) * _SAMPLE_BLOCKS * _BLOCK
    index = TarIndex(offsets, np.full(size.shard, _SAMPLE_BLOCKS * _BLOCK, np.int64))
    entries = []
    for number in range(count):
        path = folder / f"train-{number:05d}.tar"
        with path.open("wb") as file:
            file.truncate(nbytes)
        about = {"file": path.name, "split": "train", "records": size.shard, "images": 0, "bytes": nbytes}
        entries.append({**about, "sha256": f"{number:064x}"})
    description = {"source": "synthetic", "licence": "none", "settings": {}}
    write_manifest(folder, build_manifest(description, entries, []))
    write_packed_index(folder, entries, [index] * count)
    spans = np.lib.format.open_memmap(folder / "spans.npy", "w+", np.int64, (size.records, 2))
    for number in range(count):
        spans[number * size.shard : (number + 1) * size.shard] = np.stack([index.offsets, index.lengths], 1)
    spans.flush()


def open_records(folder: Path, rank: int) -> Opened:
    """This package, with a fully random order."""
    dataset = ShardDataset(folder, tolerant=True)
    return dataset, first_batch(Mixture([len(dataset)], [1.0], 0), rank)


def open_shards(folder: Path, rank: int) -> Opened:
    """This package, with a window of 16 shards."""
    dataset = ShardDataset(folder, tolerant=True)
    order = ShardOrder(dataset.shard_lengths, 16, 0, 0)
    return dataset, first_batch(Mixture([len(dataset)], [1.0], 0, orders=[order]), rank)


def first_batch(mixture: Mixture, rank: int) -> list[Draw]:
    return next(islice(BatchPlan(mixture, MICRO_BATCH, rank, RANKS).batches(), 1))


def open_arrays(folder: Path, rank: int) -> Opened:
    """The plain reference: every span and a permutation in memory."""
    manifest = json.loads((folder / "manifest.json").read_text())
    spans = np.load(folder / "spans.npy")
    order = np.random.default_rng(0).permutation(len(spans))
    numbers = range(rank, RANKS * MICRO_BATCH, RANKS)
    return (manifest, spans, order), [Draw(number, 0, int(order[number])) for number in numbers]


def node(open_one: Callable[[Path, int], Opened], folder: Path, count: int) -> dict[str, float]:
    """Seconds until the slowest of `count` processes has its first batch, and the PSS of eight, in bytes."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.Queue()
    given = [(open_one, folder, rank, barrier, results) for rank in range(count)]
    processes = [context.Process(target=_process, args=one) for one in given]
    for process in processes:
        process.start()
    found = [results.get(timeout=900) for _ in processes]
    for process in processes:
        process.join()
    seconds, computing, before, after = zip(*found, strict=True)
    nodes = RANKS / count
    cpu = sum(computing) / count
    return {"seconds": max(seconds), "cpu": cpu, "before": nodes * sum(before), "after": nodes * sum(after)}


def _process(
    open_one: Callable[[Path, int], Opened], folder: Path, rank: int, barrier: Any, results: Any
) -> None:
    barrier.wait()
    before = _pss()
    barrier.wait()
    start, computing = time.perf_counter(), time.process_time()
    opened = open_one(folder, rank)
    seconds, computing = time.perf_counter() - start, time.process_time() - computing
    barrier.wait()
    results.put((seconds, computing, before, _pss()))
    barrier.wait()
    del opened


def _pss() -> int:
    """The proportional set size of this process in bytes (Linux)."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def _case(name: str, measured: dict[str, list[dict[str, float]]], size: Size) -> dict[str, Any]:
    own, plain = (
        {key: median(one[key] for one in measured[way]) for key in ("seconds", "cpu", "before", "after")}
        for way in (name, PLAIN)
    )
    return {
        "name": name,
        "against": "arrays and a permutation in every process",
        "records": size.records,
        "processes": RANKS,
        "seconds": round(own["seconds"], 2),
        "cpu_seconds": round(own["cpu"], 2),
        "node_megabytes": round(own["after"] / 1e6),
        "data_megabytes": round((own["after"] - own["before"]) / 1e6),
        "plain_seconds": round(plain["seconds"], 2),
        "plain_data_megabytes": round((plain["after"] - plain["before"]) / 1e6),
        "speed": round(plain["seconds"] / own["seconds"], 2),
        "memory": round((own["after"] - own["before"]) / (plain["after"] - plain["before"]), 4),
    }


if __name__ == "__main__":
    main()
