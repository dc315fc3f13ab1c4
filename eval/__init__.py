"""Evaluation in two steps: predict with a model, score without one; the same numbers wherever it runs."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports

if TYPE_CHECKING:
    from .data.files import ImageSource
    from .data.hub import HubData
    from .harness.generated_images import GeneratedImage, ImageTask, find_images, item_means
    from .harness.registry import get_task, include, register, task_names
    from .harness.score import Graded, Score, accuracy_score, hidden_answers, null_score
    from .harness.task import Item, ScoringContext, Task
    from .judges.judged import JudgedTask
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "GeneratedImage",
    "Graded",
    "HubData",
    "ImageSource",
    "ImageTask",
    "Item",
    "JudgedTask",
    "Score",
    "ScoringContext",
    "Task",
    "accuracy_score",
    "find_images",
    "get_task",
    "hidden_answers",
    "include",
    "item_means",
    "null_score",
    "register",
    "task_names",
]
