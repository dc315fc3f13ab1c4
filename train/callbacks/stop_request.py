"""End a run after the current step on SIGTERM (preemption) or SIGINT (Ctrl-C)."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import torch

from ..backend.distributed import World
from .base import Callback, TrainState

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Launchers forward a signal that the terminal has already sent to all processes: that is not a second one.
ECHO_SECONDS = 1.0


class RunStopped(Exception):
    """A signal ended the run early, after a checkpoint.

    Args:
        step: optimizer steps done, all of them in the checkpoint.
        signum: the signal; the exit status is 128 plus its number, as shells report it.
    """

    def __init__(self, step: int, signum: int) -> None:
        super().__init__(f"{signal.Signals(signum).name} after step {step}")
        self.step, self.signum = step, signum


class StopRequest(Callback):
    """Within the context, the first SIGTERM or SIGINT ends the run after the current step and a checkpoint.

    A second signal, later than ``ECHO_SECONDS``, ends the process at once. ``signum`` is the signal that any
    process received, 0 for none; other processes' signals are known after `agreed`.
    """

    def __init__(self, world: World) -> None:
        self.world, self.signum = world, 0
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        with suppress(ValueError):  # handlers can only be set in the main thread
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum, self._since = signum, time.monotonic()
        elif time.monotonic() - self._since > ECHO_SECONDS:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def agreed(self) -> bool:
        """Whether any process received a signal; all-reduced, so the same on all processes."""
        asked = torch.full((1,), float(self.signum), device=self.world.device)
        if self.world.size > 1:
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        self.signum = self.signum or int(asked)
        return bool(asked)

    def before_update(self, state: TrainState) -> None:
        # Here every step waits for the device anyway, to judge the gradient.
        if self.agreed():
            state.stopping, state.last_step = True, state.step + 1
