"""Reads that fail for a moment are tried again after growing waits; each such read is counted and named."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from ...common.errors import first_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds before each further attempt, each times a random factor from 0.5 to 1.5: 15 s in all.
WAITS = (0.2, 1.0, 4.0, 10.0)
#: Errors that another attempt does not mend.
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
#: Spreads the attempts of many processes; of its own, so that no other random numbers change.
_jitter = random.Random()


@dataclass(frozen=True)
class Retry:
    """A read that succeeded after `failures` attempts that had failed, the first of them for `reason`."""

    what: str
    failures: int
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: read after {self.failures} failed attempts ({self.reason})"


_collected: ContextVar[list[Retry] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting_retries() -> Iterator[list[Retry]]:
    """The retries of this thread's reads within the block, which are then not logged."""
    found: list[Retry] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def retried(read: Callable[[], T], what: str, attempts: int | None = None) -> T:
    """The result of `read`, which is called again after each of `WAITS` while it raises OSError.

    Args:
        what: is read, for the log.
        attempts: at most so many; None: one more than there are waits.

    Errors:
        That of the last attempt. A file that is missing, or not permitted, is not tried again.
    """
    waits = WAITS if attempts is None else WAITS[: attempts - 1]
    errors: list[OSError] = []
    while True:
        try:
            result = read()
        except _LASTING:
            raise
        except OSError as error:
            if len(errors) == len(waits):
                raise
            time.sleep(waits[len(errors)] * _jitter.uniform(0.5, 1.5))
            errors.append(error)
        else:
            if errors:
                _note(Retry(what, len(errors), first_line(errors[0])))
            return result


def _note(retry: Retry) -> None:
    collected = _collected.get()
    if collected is None:
        logger.warning("%s", retry)
    else:
        collected.append(retry)
