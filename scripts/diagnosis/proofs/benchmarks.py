"""Every benchmark of `dualtoken bench`, at real sizes on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from ...bench import FOLDER, chosen, find_benchmarks, run_benchmark
from .evidence import Evidence, Row, Setting, evidence, left_out
from .memory import BENCHMARK

#: What a rehearsal runs, in its small size.
REHEARSED = ("quantizer",)


def prove(setting: Setting) -> Evidence:
    return evidence(_rows(setting))


def _rows(setting: Setting) -> Iterator[Row]:
    known = find_benchmarks(FOLDER)
    names = chosen(["all"], known) if setting.on_gpu else REHEARSED
    for name in sorted(known.keys() - {BENCHMARK}):  # a proof of its own
        if name not in names:
            yield left_out(name, known[name].lacking or "only on a GPU")
            continue
        result = run_benchmark(name, known[name], "full" if setting.on_gpu else "small")
        if "error" in result:
            yield Row(name, result["error"], "no error", False)
            continue
        for case in result["cases"]:
            label = f"{name}: {case.get('name', '')}, times as fast as {case.get('against')}"
            yield Row(label, case.get("speed"))
