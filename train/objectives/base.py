"""The interface between the trainer and what it trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ...common.errors import UserError, first_line, shown
from ...data_pipelines.records import Record, RecordError
from ..planning.flops import Work

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


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    return {key: n.to(device) if isinstance(n, torch.Tensor) else n for key, n in batch.items()}


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Bring a model's weights to ``dtype``, but for what it keeps in fp32 itself (the codebooks)."""
    nn.Module.to(model, dtype)  # PreTrainedModel's own `to` has no usable types


def is_part(name: str, parts: list[str]) -> bool:
    """Whether a parameter's name begins with one of the parts, or fits it as a shell pattern."""
    return any(name.startswith(part) or fnmatchcase(name, part) for part in parts)


def freeze_all_but(model: nn.Module, parts: list[str], setting: str) -> None:
    """Of the parameters that are trained, leave only those of `parts` (see `is_part`) trained.

    Errors:
        UserError, naming the setting, for a part that fits nothing, or no parameter that is trained.
    """
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    unknown = [part for part in parts if not any(is_part(name, [part]) for name in names)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and is_part(name, parts))
    if unknown or not any(parameter.requires_grad for parameter in model.parameters()):
        known = ", ".join(sorted({name.split(".")[0] for name in names}))
        raise UserError(f"{setting} {unknown or parts} fits no parameter; its parts are {known}")


def image_of(part: Mapping[str, Any], record: Record) -> Any:
    """The image of an image part. RecordError where it holds only codes."""
    if "image" not in part:
        raise RecordError(
            f"Record {shown(record.id)} holds codes instead of an image: give the images' shards"
        )
    return part["image"]


@contextmanager
def naming(record: Record) -> Iterator[None]:
    """Turn whatever is raised in the block into a RecordError with the record's id.

    For text tokenizers, which come from elsewhere and raise various errors for a text they cannot take.
    """
    try:
        yield
    except UserError as error:
        raise RecordError(f"Record {shown(record.id)}: {error}") from error
    except Exception as error:
        raise RecordError(
            f"Record {shown(record.id)}: {type(error).__name__}: {first_line(error)}"
        ) from error


class Objective(nn.Module, ABC):
    """A module that holds the trained model and returns its losses; DeepSpeed wraps the objective itself.

    Randomness: the loop seeds torch before every micro-batch from (seed, rank, step, micro-batch),
    ``prepare`` may only use the draw number.
    """

    @abstractmethod
    def prepare(self, record: Record, draw: int) -> Any:
        """A model-ready example of a valid record (runs in loader workers).

        Whatever `collate` and `forward` need is seen to here, so that one record cannot end a run.

        Errors:
            RecordError, which loaders skip and name, for a record that cannot be used.
        """

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

    def rehearse_export(self, folder: Path) -> None:
        """Try, before the training, what `export` needs besides the weights; ``folder`` is thrown away."""

    #: Names of the groups of parameters that may have a learning rate of their own (``optimizer.group_lr``).
    GROUPS: ClassVar[tuple[str, ...]] = ()

    def group_of(self, name: str, parameter: nn.Parameter) -> str:
        """The group of a parameter, one of ``GROUPS``."""
        return ""

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

    def work(self, batch: Batch) -> Work:
        """Tokens, images and arithmetic of a batch, for the log."""
        return Work(images=float(len(batch["pixel_values"]))) if "pixel_values" in batch else Work()

    def source_sums(
        self, batch: Batch, source_ids: torch.Tensor, num_sources: int
    ) -> dict[str, torch.Tensor]:
        """Losses of the last forward pass by source of data: for each term [sums, targets], (2, S) fp64.

        Args:
            batch: what the pass was given.
            source_ids: number of each example's source (B,), or of each position's (B, L).
        """
        return {}

    def before_step(self, step: int, upcoming: Upcoming, device: torch.device) -> None:
        """Called before every optimizer step; ``upcoming()`` gives the micro-batches from this step on,
        unconsumed."""

    def after_step(self, step: int) -> None:
        """Called after every optimizer step, for what is trained besides the model."""

    def after_skipped_step(self) -> None:
        """Called instead of `after_step` for a step that was not done."""

    def extra_state(self) -> dict[str, Any]:
        """State that a checkpoint has to hold besides the module's; the same on all processes."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Inverse of `extra_state`."""

    def extra_metrics(self) -> dict[str, float]:
        """Further numbers for the log (codebook usage and the like); called when the loop logs."""
        return {}

    def summary(self) -> str:
        """A few words about the last `extra_metrics`, for the console."""
        return ""

    def alarms(self) -> dict[str, str]:
        """What the last `extra_metrics` found wrong: a key for each fault, and a line for the user."""
        return {}
