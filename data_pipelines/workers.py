"""A parallel `map` over worker processes: results in order, and no worker outlives its parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from ..common.errors import UserError

#: Signals that end a run after a checkpoint; its workers must outlive them.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Upper bound of --workers.
MOST_WORKERS = 1024

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def map_in_workers(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[Iterator[R]]:
    """`map(function, tasks)` in `workers` processes (1: in this one), lazily and in order.

    `function` is sent to every worker once, and about two tasks per worker are pending at a time.

    Errors:
        UserError where a worker process died.
    """
    if workers == 1:
        yield map(function, tasks)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=_worker_context(), initializer=_start_worker, initargs=(function,)
    )
    try:
        yield _in_order(pool, tasks, 2 * workers + 2)
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process died, perhaps for lack of memory: give the same command again with fewer "
            "--workers to resume"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _worker_context() -> BaseContext:
    """Fork workers from a server that has imported this package; spawn them where that is unsupported.

    Not plain fork: libraries in this process may hold threads and locks. Spawned workers each import torch.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.convert.driver"])
    return context


def loader_context() -> BaseContext:
    """How loaders start their workers: Python's own choice, which is no longer fork everywhere.

    A fork server is started here, with the signals that end a run blocked: schedulers signal every process,
    and workers whose server has died count as dead.
    """
    context = multiprocessing.get_context()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver, resource_tracker  # not on every system

        resource_tracker.ensure_running()  # it unblocks signals when it starts
        # Workers inherit the imports of the server.
        context.set_forkserver_preload([f"{__package__}.stream.packed_loader"])
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _in_order(pool: ProcessPoolExecutor, tasks: Iterable[Any], window: int) -> Iterator[Any]:
    pending: deque[Future[Any]] = deque()
    for task in tasks:
        pending.append(pool.submit(_work, task))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


_function: Callable[[Any], Any] | None = None


def _start_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this worker when its parent is gone: a killed parent cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: Any) -> Any:
    assert _function is not None
    return _function(task)
