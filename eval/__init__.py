"""Evaluation in two steps: predict with a model, score without one; the same numbers wherever it runs."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports

if TYPE_CHECKING:
    from .benchmark import Benchmark, Item, Score
    from .registry import benchmark_names, get_benchmark, register
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = ["Benchmark", "Item", "Score", "benchmark_names", "get_benchmark", "register"]
