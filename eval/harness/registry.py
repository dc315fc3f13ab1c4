"""Benchmarks by name. Every module in `eval/tasks/` is imported once; what it registers is there."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from typing import TypeVar

from ...common.errors import UserError
from .task import Benchmark

B = TypeVar("B", bound=Benchmark)

_REGISTERED: dict[str, Benchmark] = {}


def register(benchmark: type[B]) -> type[B]:
    """Class decorator: makes a benchmark known under its name."""
    _REGISTERED[benchmark.name] = benchmark()
    return benchmark


@cache
def _import_all() -> None:
    from .. import tasks

    for module in pkgutil.iter_modules(tasks.__path__):
        importlib.import_module(f"{tasks.__name__}.{module.name}")


def benchmark_names() -> list[str]:
    """All names, sorted."""
    _import_all()
    return sorted(_REGISTERED)


def get_benchmark(name: str) -> Benchmark:
    """A benchmark by name. UserError for an unknown one, with the nearest known names."""
    names = benchmark_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"unknown benchmark {name!r}{hint} (all of them: dualtoken eval list)")
    return _REGISTERED[name]
