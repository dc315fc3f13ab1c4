"""The peak of memory of training a 0.5 B model, at ZeRO 2 and 3, against the estimate of its recipe."""

from __future__ import annotations

from collections.abc import Iterator

from ...bench import FOLDER, find_benchmarks, run_benchmark
from .evidence import Evidence, Row, Setting, at_most, evidence

BENCHMARK = "real_size"
#: The estimate leaves out CUDA itself and the allocator's gaps.
TOLERANCE = 0.15
#: Of a loss between the stages, in bf16.
LOSS_TOLERANCE = 0.05


def prove(setting: Setting) -> Evidence:
    return evidence(_rows(setting))


def _rows(setting: Setting) -> Iterator[Row]:
    benchmark = find_benchmarks(FOLDER)[BENCHMARK]
    result = run_benchmark(BENCHMARK, benchmark, "full" if setting.on_gpu else "small")
    if "error" in result:
        yield Row(BENCHMARK, result["error"], "no error", False)
        return
    losses = {}
    for case in result["cases"]:
        name = case["name"]
        yield Row(f"{name}, peak in GB", round(case["peak"], 2))
        if "estimated" in case:
            yield Row(f"{name}, estimate in GB", case["estimated"])
            share = abs(case["peak"] / case["estimated"] - 1.0)
            yield at_most(f"{name}, share by which the peak is off the estimate", share, TOLERANCE)
            losses[name] = [value for step in case["losses"] for value in step.values()]
    first, second = losses.values()
    difference = max(abs(one - other) for one, other in zip(first, second, strict=True))
    yield at_most(f"largest difference of a loss between {' and '.join(losses)}", difference, LOSS_TOLERANCE)
