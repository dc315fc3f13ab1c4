"""Time and extra peak memory of several ways to do one thing, measured in turns within one run.

A candidate is a function that builds its inputs and returns the step to measure. It must be importable, as
the memory of each is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from dualtoken.common.arguments import integer
from dualtoken.common.machine import describe_machine

Candidate = Callable[[], Callable[[], Any]]

# A large block goes back to the system once freed, so that the memory in use before and after is comparable.
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass(frozen=True)
class Cost:
    """Median seconds of one step, and by how many bytes its peak exceeds what was in use before it."""

    seconds: float
    extra_bytes: int


def argument_parser(
    doc: str | None, sizes: Iterable[str], timed: str, repeats: int
) -> argparse.ArgumentParser:
    """A parser with `--size` and `--repeats`, how many `timed` ("steps", "runs") are measured."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(sizes), default="small")
    help = f"timed {timed} of each (default: %(default)s)"
    parser.add_argument("--repeats", type=integer(1, 1000), default=repeats, help=help)
    return parser


def default_device() -> str:
    """The device of benchmarks: the GPU, where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def costs(candidates: Mapping[str, Candidate], repeats: int) -> dict[str, Cost]:
    """Every candidate's cost. Times are taken in turns, so that a slow moment affects all of them."""
    peaks = {name: _peak_in_own_process(build) for name, build in candidates.items()}
    seconds = timed_in_turns({name: build() for name, build in candidates.items()}, repeats)
    return {name: Cost(seconds[name], peaks[name]) for name in candidates}


def timed_in_turns(steps: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The median seconds of every step, after one warm-up."""
    for step in steps.values():
        _timed(step)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            times[name].append(_timed(step))
    return {name: statistics.median(times[name]) for name in steps}


def compare(case: str, ours: str, measured: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """One entry for each other candidate: how many times as fast, and which share of its extra memory."""
    own = measured[ours]
    return [
        {
            "name": case,
            "against": name,
            "speed": round(other.seconds / own.seconds, 3),
            "memory": round(own.extra_bytes / max(other.extra_bytes, 1), 4),
            "seconds": round(own.seconds, 4),
            "megabytes": round(own.extra_bytes / 2**20, 1),
        }
        for name, other in measured.items()
        if name != ours
    ]


def report(benchmark: str, cases: list[dict[str, Any]], **more: Any) -> None:
    """The result as one JSON object on the last line."""
    machine = describe_machine(default_device())
    print(json.dumps({"benchmark": benchmark, "machine": machine, "cases": cases, **more}))


def _timed(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_in_own_process(build: Candidate) -> int:
    with (
        patch.dict(os.environ, RETURN_FREED_MEMORY),  # read when a process starts
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        return pool.apply(partial(_peak, build, torch.get_num_threads()))


def _peak(build: Candidate, threads: int) -> int:
    torch.set_num_threads(threads)
    step = build()
    step()  # one-time setup is not part of a step
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Linux: writing 5 sets the highest resident size back to the present one.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def peak_of(run: Callable[[], Any]) -> tuple[Any, int]:
    """What `run` returns, and by how many bytes this process's memory at most grew in it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = run()
    return result, _status("VmHWM") - before


def _status(field: str) -> int:
    """A size of this process in bytes, from /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; the memory benchmark needs Linux")
