"""The interface between the loop and what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ...data_pipelines.records import Record

Batch = dict[str, Any]
Upcoming = Callable[[], Iterator[Batch]]


@dataclass(frozen=True)
class LossTerm:
    """One loss as a sum over its own targets.

    The loop divides ``total`` by the number of targets of *all* ranks and accumulated micro-batches, so
    that a term is a true mean whatever the batches hold.
    """

    total: torch.Tensor
    weight: float | torch.Tensor = 1.0


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring a model's weights to ``dtype``, but for what it keeps in fp32 itself (the codebooks)."""
    nn.Module.to(model, dtype)  # PreTrainedModel's own `to` has no usable types


class Objective(nn.Module, ABC):
    """A module that holds the trained model and returns its losses; DeepSpeed wraps the objective itself.

    Randomness: the loop seeds torch before every micro-batch from (seed, rank, step, micro-batch),
    ``prepare`` may only use the draw number.
    """

    @abstractmethod
    def prepare(self, record: Record, draw: int) -> Any:
        """A model-ready example of a record (runs in loader workers)."""

    @abstractmethod
    def collate(self, examples: list[Any]) -> Batch:
        """A batch of tensors (and what else ``forward`` takes)."""

    def collate_packed(self, rows: list[list[Any]], length: int) -> Batch:
        """A batch of rows that hold several examples each, ``length`` tokens long."""
        raise NotImplementedError(f"{type(self).__name__} has no packed batches")

    @abstractmethod
    def target_counts(self, batch: Batch) -> dict[str, float]:
        """Number of targets of every term in this batch, known before the forward pass."""

    @abstractmethod
    def forward(self, **batch: Any) -> dict[str, LossTerm]:
        """Sums of every loss over this batch's targets; the same terms for every batch."""

    @abstractmethod
    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the trained model, its weights in ``dtype``, in its public format into the existing
        ``folder``."""

    def initialise_from(self, folder: str) -> None:
        """Start from the weights of an exported folder."""
        raise NotImplementedError(f"{type(self).__name__} cannot start from an exported folder")

    def set_attention(self, implementation: str) -> None:
        """Have every transformers model in this objective attend by this implementation."""
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                module.set_attn_implementation(implementation)

    def enable_gradient_checkpointing(self) -> None:
        """Have the layers of transformers' models recomputed in the backward pass."""
        for module in self.children():
            if isinstance(module, PreTrainedModel):
                module.gradient_checkpointing_enable({"use_reentrant": False})

    def check_source(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Raise UserError for a source of data that this objective must not be trained on."""

    def record_length(self, record: Record) -> int:
        """A rough length for grouping records of like length."""
        return 0

    def before_step(self, step: int, upcoming: Upcoming, device: torch.device) -> None:
        """Called before every optimizer step; ``upcoming()`` gives the micro-batches from this step on,
        unconsumed."""

    def after_step(self, step: int) -> None:
        """Called after every optimizer step, for what is trained beside the model."""

    def extra_state(self) -> dict[str, Any]:
        """State beside the module's that a checkpoint has to hold; the same on all processes."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Inverse of `extra_state`."""

    def extra_metrics(self) -> dict[str, float]:
        """Further numbers for the log (codebook usage and the like); called when the loop logs."""
        return {}

    def summary(self) -> str:
        """A few words beside the losses in the console, about the last `extra_metrics`."""
        return ""

    def alarms(self) -> dict[str, str]:
        """What the last `extra_metrics` found wrong: a key for each fault, and a line for the user."""
        return {}
