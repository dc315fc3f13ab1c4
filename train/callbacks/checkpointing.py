"""When checkpoints are written, and by which loss they are compared."""

from __future__ import annotations

from ..backend.checkpoint import Checkpoints, JudgedBy
from ..metrics import Metrics
from .base import Callback, TrainState
from .losses import require_finite_losses


class Checkpointing(Callback):
    """Saves every so many steps, and after the last one.

    Checkpoints compete by the newest validation loss; without validation, by the weighted training loss, its
    mean over the steps since the checkpoint before and over all processes.

    Args:
        every: steps between checkpoints; 0 writes only the last one.
    """

    def __init__(self, checkpoints: Checkpoints, every: int) -> None:
        self.checkpoints, self.every = checkpoints, every
        self._window = Metrics(checkpoints.world)

    def after_step(self, state: TrainState) -> None:
        # A loss is this process's share, times what DeepSpeed divides by: processes and micro-batches.
        for loss in state.losses:
            self._window.record("loss", loss, 1.0)

    def on_step_end(self, state: TrainState) -> None:
        if state.step != state.last_step and not (self.every and state.step % self.every == 0):
            return
        require_finite_losses(state.metrics.read(reset=False), state.step)
        self.checkpoints.save(state.engine, state.step, state.state_dict(), self._judged(state))

    def _judged(self, state: TrainState) -> JudgedBy | None:
        if state.validation_loss is not None:
            return JudgedBy(state.validation_loss, "validation")
        if state.stopping:  # the few steps before a signal make no fair comparison
            return None
        loss = self._window.read().get("loss")
        return None if loss is None else JudgedBy(loss, "training")
