"""Regular checkpoints, and the loss by which they are compared."""

from __future__ import annotations

from ..backend.checkpoint import Checkpoints, JudgedBy
from ..metrics import Metrics
from .base import Callback, TrainState
from .losses import require_finite_losses


class Checkpointing(Callback):
    """Saves a checkpoint at regular steps and after the last one.

    Checkpoints are compared by the validation loss of the same step; in a run without validation by the
    weighted training loss, averaged over all processes and the steps since the previous checkpoint.

    Args:
        every: steps between checkpoints; 0 writes only the last one.
    """

    def __init__(self, checkpoints: Checkpoints, every: int) -> None:
        self.checkpoints, self.every = checkpoints, every
        self._window = Metrics(checkpoints.world)

    def after_step(self, state: TrainState) -> None:
        # A loss is this process's share, scaled by the number of processes and micro-batches.
        for loss in state.losses:
            self._window.record("loss", loss, 1.0)

    def on_step_end(self, state: TrainState) -> None:
        self.checkpoints.poll()
        if state.step != state.last_step and not (self.every and state.step % self.every == 0):
            return
        require_finite_losses(state.metrics.read(reset=False), state.step)
        self.checkpoints.save(state.engine, state.step, state.state_dict(), self._judged(state))

    def on_train_end(self, state: TrainState) -> None:
        self.checkpoints.wait()

    def _judged(self, state: TrainState) -> JudgedBy | None:
        if state.validation_loss is not None:
            judged, step = state.validation_loss
            # An older one judges other weights.
            return JudgedBy(judged, "validation") if step == state.step else None
        if state.stopping:  # a mean over the few steps before a signal is not comparable
            return None
        loss = self._window.read().get("loss")
        return None if loss is None else JudgedBy(loss, "training")
