"""Host memory while a ZeRO-3 run starts: from building the model until its weights are partitioned.

`plain`: every process builds the complete model in fp32, then partitions it. `dualtoken`: as the trainer
does. Both load the same random language model from several safetensors files and add new heads. The peak of
each process's own memory (without mapped files, which the system drops when it needs the room) is measured
with two processes; that of eight is computed: with more processes a partition is smaller, all else stays.
Partitions are in this memory, too, as there is no GPU.

Examples:
  python benchmarks/startup.py
  python benchmarks/startup.py --size full                        # Qwen2.5-0.5B: 6 GB
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import report
from real_size import recipe_for
from train_setup import HALF_A_BILLION, write_llm, write_visual_tokenizer

from dualtoken.train.backend.deepspeed import full_size, partition
from dualtoken.train.backend.distributed import World, join_world, leave_world
from dualtoken.train.backend.placement import place
from dualtoken.train.backend.zero import deepspeed_config
from dualtoken.train.config.recipe import Recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.trainer import weights_at_start

MEASURED, COMPUTED = 2, 8
#: Layers of the language model and tokens of its vocabulary.
SIZES = {"small": (12, 32_000), "full": (24, 151_936)}


def plain(recipe: Recipe, world: World) -> Any:
    """The complete model in every process, converted and partitioned as DeepSpeed does it."""
    objective = build_objective(recipe)
    for parameter in objective.parameters():
        parameter.data = parameter.data.bfloat16()
    partition(objective.parameters(), deepspeed_config(recipe, world.size))
    return objective


def dualtoken(recipe: Recipe, world: World) -> Any:
    objective = build_objective(recipe, weights_at_start(recipe, world))
    place(objective, world, torch.bfloat16, deepspeed_config(recipe, world.size))
    return objective


def own_memory() -> int:
    """Bytes of this process that belong to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def peak_growth(run: Callable[[], Any]) -> tuple[Any, int]:
    """What `run` returns, and the largest growth of `own_memory` seen every few milliseconds."""
    before, peak, done = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, own_memory())
            time.sleep(0.003)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = run()
    done.set()
    watcher.join()
    return result, peak - before


def measure_here(way: str, folder: Path) -> None:
    """One of the two processes: write its peak and the number of the model's parameters."""
    recipe, world = recipe_for(folder, 3, 4096), join_world(threads=1)
    torch.manual_seed(recipe.seed)
    build = {"plain": plain, "dualtoken": dualtoken}[way]
    objective, peak = peak_growth(lambda: build(recipe, world))
    parameters = sum(map(full_size, objective.parameters()))
    content = json.dumps({"peak": peak, "parameters": parameters})
    (folder / f"{way}-{world.rank}.json").write_text(content)
    leave_world()


def measured(way: str, folder: Path) -> list[dict[str, int]]:
    """What each of two processes needed."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(MEASURED)]
    subprocess.run(
        [sys.executable, *launch, __file__, "--way", way, "--folder", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return [json.loads((folder / f"{way}-{rank}.json").read_text()) for rank in range(MEASURED)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=list(SIZES), default="small", help="full: Qwen2.5-0.5B's own")
    parser.add_argument("--layers", type=int, help="layers of the language model, instead of the size's")
    parser.add_argument("--vocabulary", type=int, help="its tokens, instead of the size's")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        measure_here(args.way, Path(args.folder))
        return
    layers, vocabulary = SIZES[args.size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_llm(folder / "llm", args.layers or layers, args.vocabulary or vocabulary)
        write_visual_tokenizer(folder / "codebooks", HALF_A_BILLION)
        ways = {way: measured(way, folder) for way in ("plain", "dualtoken")}
    parameters = ways["plain"][0]["parameters"]
    # The peak of a plain process is before it partitions; the other ways' peaks hold their partition.
    smaller = 2 * parameters / MEASURED - 2 * parameters / COMPUTED
    first, other = (one["peak"] - smaller for one in ways["dualtoken"])
    old = COMPUTED * sum(one["peak"] for one in ways["plain"]) / MEASURED
    new = first + (COMPUTED - 1) * other
    gigabytes = {way: [round(one["peak"] / 1e9, 3) for one in found] for way, found in ways.items()}
    case = {
        "name": f"{parameters / 1e9:.2f} G parameters, {MEASURED} processes measured",
        "gigabytes": gigabytes,
        "memory": round(sum(gigabytes["dualtoken"]) / sum(gigabytes["plain"]), 4),
    }
    computed = {
        "name": f"{COMPUTED} processes computed",
        "gigabytes": {"plain": round(old / 1e9, 3), "dualtoken": round(new / 1e9, 3)},
        "memory": round(new / old, 4),
    }
    report("startup", [case, computed])


if __name__ == "__main__":
    main()
