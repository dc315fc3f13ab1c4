"""The registry of tasks: those in `eval/tasks/`, and those of plug-ins.

A plug-in is an installed package with the entry point `dualtoken.tasks`, or a folder of Python files given
as --include-path.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from ...common.errors import UserError
from ...common.plugins import load_plugins
from .. import tasks
from .task import Task

#: The group of entry points whose modules register tasks.
ENTRY_POINTS = "dualtoken.tasks"

T = TypeVar("T", bound=Task)

_REGISTERED: dict[str, Task] = {}


def register(task: type[T]) -> type[T]:
    """Class decorator that registers a task by its name.

    Errors:
        UserError if another task has that name, and for a task that defines neither `grade` nor `score`.
    """
    known = _REGISTERED.get(task.name)
    if known is not None and _origin(type(known)) != _origin(task):
        raise UserError(f"two tasks are named {task.name!r}: {_origin(type(known))} and {_origin(task)}")
    if task.grade is Task.grade and task.score is Task.score:
        raise UserError(f"task {task.name!r} defines neither grade nor score: give it one of them")
    _REGISTERED[task.name] = task()
    return task


def _origin(task: type[Task]) -> str:
    return f"{task.__module__}.{task.__qualname__}"


@cache
def _load_package_and_entry_points() -> None:
    for module in pkgutil.iter_modules(tasks.__path__):
        importlib.import_module(f"{tasks.__name__}.{module.name}")
    load_plugins(ENTRY_POINTS)


def include(folders: Sequence[Path]) -> None:
    """Register the tasks that the Python files of these folders define."""
    _load_package_and_entry_points()
    load_plugins(ENTRY_POINTS, folders)


def task_names() -> list[str]:
    """The names of all tasks, sorted."""
    _load_package_and_entry_points()
    return sorted(_REGISTERED)


def get_task(name: str) -> Task:
    """A task by name. UserError for an unknown one, with similar names."""
    names = task_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"unknown task {name!r}{hint} (all of them: dualtoken eval list)")
    return _REGISTERED[name]
