"""Evaluation in two steps: predict with a model, score without one; the same numbers wherever it runs."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports

if TYPE_CHECKING:
    from .harness.registry import benchmark_names, get_benchmark, register
    from .harness.task import Benchmark, Item, Score
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = ["Benchmark", "Item", "Score", "benchmark_names", "get_benchmark", "register"]
