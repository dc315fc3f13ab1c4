"""End a stuck process with an error that names its rank and phase, so that no run hangs.

Collectives over gloo time out with an error that does not name the phase; those over NCCL are ended by a
thread that kills the process, and nothing ends a stuck data loader. So every phase is named when it starts,
and a thread watches its duration.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from ...common.errors import one_line
from ..backend.distributed import is_lost_connection
from .base import Callback, TrainState


class HangGuard(Callback):
    """Tracks the phase of this process, and ends the process when a phase lasts too long.

    Args:
        rank: of this process, for the message.
        timeout: longest phase. The process group should have the same, so that its error comes first.
    """

    _GRACE = 20.0  # seconds in which the process group's time-out may raise a proper error

    def __init__(self, rank: int, timeout: timedelta) -> None:
        self.rank, self.timeout = rank, timeout
        self._phase, self._since = "starting", time.monotonic()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="hang-guard", daemon=True).start()

    def enter(self, phase: str) -> None:
        """Start a phase, such as "step 12: forward and backward"."""
        self._phase, self._since = phase, time.monotonic()

    def before_step(self, state: TrainState) -> None:
        self.enter(f"step {state.step + 1}: waiting for data")

    def after_loading(self, state: TrainState) -> None:
        self.enter(f"step {state.step + 1}: forward, backward and update")

    def after_step(self, state: TrainState) -> None:
        self.enter(f"step {state.step}: log, validation and checkpoint")

    on_skipped_step = after_step

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Add rank and phase to communication errors raised in the block; leaving it ends the watch."""
        try:
            yield
        except RuntimeError as error:
            if is_lost_connection(error):
                raise RuntimeError(f"{self._where()}: {one_line(str(error))}") from error
            raise
        finally:
            self._closed.set()

    def _where(self) -> str:
        waited = time.monotonic() - self._since
        return f"rank {self.rank} lost the other processes after {waited:.0f} s in phase '{self._phase}'"

    def _watch(self) -> None:
        limit = self.timeout.total_seconds() + self._GRACE
        while not self._closed.wait(min(5.0, limit / 4)):
            waited = time.monotonic() - self._since
            if waited > limit:
                print(
                    f"error: rank {self.rank} has been in phase '{self._phase}' for {waited:.0f} s; "
                    "run.timeout_minutes is the limit. Another process died or is stuck, or the data do not "
                    "arrive. The newest checkpoint is complete: start the run again",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)  # the main thread is stuck in a call that no exception reaches
