"""Evaluation in two steps: predict with a model, score without one; the same numbers wherever it runs."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports

if TYPE_CHECKING:
    from .harness.registry import get_task, include, register, task_names
    from .harness.score import Graded, Score
    from .harness.task import Item, ScoringContext, Task
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "Graded",
    "Item",
    "Score",
    "ScoringContext",
    "Task",
    "get_task",
    "include",
    "register",
    "task_names",
]
