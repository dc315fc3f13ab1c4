"""The interface of callbacks, and the state of a run that they are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...data_pipelines.stream.loader import StreamBatch
from ..backend.distributed import World
from ..config.recipe import Recipe
from ..metrics import Metrics
from ..objectives import LossTerm, Objective
from ..stream import Stream


class Callback:
    """Hooks around the steps of a run; each does nothing unless it is overridden.

    The hooks of a step, in order: `before_step`, `after_loading`, `after_forward` for every micro-batch,
    `before_update`, `after_update`, `after_step` or `on_skipped_step`, then `on_log` and `on_metrics` if a
    log line is due, and `on_step_end`. Every process calls all of them.
    """

    #: Name of its state in checkpoints; empty for a callback without state.
    state_name: ClassVar[str] = ""

    def before_step(self, state: TrainState) -> None:
        """Called before the data of step ``state.step + 1`` are loaded."""

    def after_loading(self, state: TrainState) -> None:
        """``state.micro_batches`` are on the device, for which nothing may wait until `before_update`."""

    def after_forward(self, state: TrainState, number: int, terms: dict[str, LossTerm]) -> None:
        """The losses of micro-batch ``number`` of the step are computed; the backward pass follows."""

    def before_update(self, state: TrainState) -> None:
        """The gradient of all micro-batches is complete. Processes are synchronised here anyway."""

    def after_update(self, state: TrainState) -> None:
        """The engine has stepped, or refused to."""

    def after_step(self, state: TrainState) -> None:
        """Step ``state.step`` is done."""

    def on_skipped_step(self, state: TrainState) -> None:
        """Instead of `after_step` if the weights were not updated; ``state.skipped`` is the reason."""

    def on_log(self, state: TrainState) -> None:
        """A log line is due: the last chance to record metrics for it."""

    def on_metrics(self, state: TrainState, metrics: dict[str, float]) -> None:
        """The metrics of the log line, reduced over all processes; may be changed in place."""

    def on_validation(self, state: TrainState, losses: dict[str, float], images: dict[str, Path]) -> None:
        """A validation is done: its losses by name, and the files of generated images by prompt."""

    def on_step_end(self, state: TrainState) -> None:
        """After all other hooks of a step, skipped or not."""

    def on_train_end(self, state: TrainState) -> None:
        """After the last step."""

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints, the same on all processes; empty for none."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Inverse of `state_dict`; `saved` is empty if the checkpoint has no such state."""


@dataclass
class TrainState:
    """The components and the progress of a run.

    Args:
        step: optimizer steps done, skipped ones included.
        last_step: training ends after this one. A callback may lower it.
        metrics: collects the next log line.
        micro_batches: of the current step, their inputs on the device.
        target_counts: number of targets of every loss term in each micro-batch, on this process.
        losses: the weighted loss of each micro-batch, as used in the backward pass.
        skipped: why the last step was skipped, or None.
        stopping: whether a signal ends the run.
        validation_loss: mean of the losses of the last validation, and the step that it was made at.
    """

    recipe: Recipe
    world: World
    objective: Objective
    engine: Any
    stream: Stream
    metrics: Metrics
    step: int
    last_step: int
    callbacks: list[Callback] = field(default_factory=list)
    micro_batches: list[StreamBatch] = field(default_factory=list)
    target_counts: list[dict[str, float]] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    skipped: str | None = None
    stopping: bool = False
    validation_loss: tuple[float, int] | None = None

    def autocast(self) -> torch.autocast:
        """Context for the model in the run's precision; the engine enters it by itself."""
        enabled = self.recipe.run.precision == "bf16_autocast"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)

    def call(self, hook: str, *given: Any) -> None:
        """Call a hook of every callback, in their order."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *given)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint in addition to the engine's. Every process calls this."""
        parts = {"objective": self.objective.extra_state(), "stream": self.stream.state_dict()}
        parts["order"] = self.stream.order_state()
        parts |= {callback.state_name: callback.state_dict() for callback in self._with_state()}
        return {name: part for name, part in parts.items() if part}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if "objective" in saved:
            self.objective.load_extra_state(saved["objective"])
        self.stream.load_order_state(saved.get("order", {}))
        if "stream" in saved:
            self.stream.load_state_dict(saved["stream"])
        for callback in self._with_state():
            callback.load_state_dict(saved.get(callback.state_name, {}))

    def _with_state(self) -> list[Callback]:
        return [callback for callback in self.callbacks if callback.state_name]
