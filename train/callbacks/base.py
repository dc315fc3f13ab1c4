"""What happens around the steps of a run: the hooks, and what they see of it."""

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
    """Something that happens around the steps of a run. A hook does nothing unless it is overridden.

    The hooks of a step, in order: `before_step`, `after_loading`, `after_forward` for every micro-batch,
    `before_update`, `after_update`, `after_step` or `on_skipped_step`, then `on_log` and `on_metrics` if a
    log line is due, and `on_step_end`. Every process calls all of them.
    """

    #: Under this name a checkpoint holds its state; empty for callbacks without.
    state_name: ClassVar[str] = ""

    def before_step(self, state: TrainState) -> None:
        """Before the data of step ``state.step + 1`` are taken."""

    def after_loading(self, state: TrainState) -> None:
        """``state.micro_batches`` are on the device. Processes wait for one another here anyway."""

    def after_forward(self, state: TrainState, number: int, terms: dict[str, LossTerm]) -> None:
        """The losses of micro-batch ``number`` of the step are known; the backward pass follows."""

    def before_update(self, state: TrainState) -> None:
        """The gradient of all micro-batches is complete."""

    def after_update(self, state: TrainState) -> None:
        """The optimizer has been asked to step."""

    def after_step(self, state: TrainState) -> None:
        """Step ``state.step`` is done."""

    def on_skipped_step(self, state: TrainState) -> None:
        """Instead of `after_step` where the weights did not move; ``state.skipped`` is the reason."""

    def on_log(self, state: TrainState) -> None:
        """A log line is due: what belongs in it is recorded now at the latest."""

    def on_metrics(self, state: TrainState, metrics: dict[str, float]) -> None:
        """The log line's numbers, over all processes. May be changed in place."""

    def on_validation(self, state: TrainState, losses: dict[str, float], images: dict[str, Path]) -> None:
        """A validation is done: its losses by name, and the files of generated images by prompt."""

    def on_step_end(self, state: TrainState) -> None:
        """After everything else of a step, skipped or not."""

    def on_train_end(self, state: TrainState) -> None:
        """After the last step."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to hold, the same on all processes; empty for nothing."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Inverse of `state_dict`; `saved` is empty where the checkpoint holds nothing."""


@dataclass
class TrainState:
    """What a run is made of, and where it is.

    Args:
        step: optimizer steps done, skipped ones included.
        last_step: training ends after this one. A callback may lower it.
        metrics: what the next log line will hold.
        micro_batches: of the step at hand, their inputs on the device.
        target_counts: number of targets of every loss term in each of them, on this process.
        losses: the weighted loss of each, as it goes into the backward pass.
        skipped: why the last step was skipped, or None.
        stopping: whether a signal ends the run.
        validation_loss: the mean of the newest validation's losses.
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
    validation_loss: float | None = None

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass."""
        enabled = self.recipe.run.precision == "bf16_autocast"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)

    def call(self, hook: str, *given: Any) -> None:
        """Call a hook of every callback, in their order."""
        for callback in self.callbacks:
            getattr(callback, hook)(self, *given)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the engine's state. Every process calls this."""
        parts = {"objective": self.objective.extra_state(), "stream": self.stream.state_dict()}
        parts |= {one.state_name: one.state_dict() for one in self.callbacks if one.state_name}
        return {name: part for name, part in parts.items() if part}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if "objective" in saved:
            self.objective.load_extra_state(saved["objective"])
        if "stream" in saved:
            self.stream.load_state_dict(saved["stream"])
        for callback in self.callbacks:
            if callback.state_name:
                callback.load_state_dict(saved.get(callback.state_name, {}))
