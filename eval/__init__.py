"""Evaluation in two steps: predict with a model, score without one; the same numbers wherever it runs."""

from .benchmark import Benchmark, Item, Score
from .registry import benchmark_names, get_benchmark, register

__all__ = ["Benchmark", "Item", "Score", "benchmark_names", "get_benchmark", "register"]
