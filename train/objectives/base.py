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
from ...common.loading.attention import set_attention
from ...data_pipelines.records import Record, RecordError
from ...mllm.batch_index import BatchIndex
from ..planning.flops import Work
from .examples import Examples

Batch = dict[str, Any]
Upcoming = Callable[[], Iterator[Batch]]


@dataclass(frozen=True)
class LossTerm:
    """One loss as a sum over its own targets.

    The trainer divides ``total`` by the number of targets in *all* ranks and accumulated micro-batches, so
    that a term is a true mean over targets.
    """

    total: torch.Tensor
    weight: float | torch.Tensor = 1.0


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch with its tensors on `device`; copies to a GPU are queued, and the host does not wait."""
    return {key: _moved(value, torch.device(device)) for key, value in batch.items()}


def _moved(value: Any, device: torch.device) -> Any:
    if not isinstance(value, torch.Tensor | BatchIndex):
        return value
    # A copy waits unless it is from page-locked memory, which is kept until the copy is done.
    return value.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else value.to(device)


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert a model's weights to ``dtype``, except those that it keeps in fp32 (the codebooks)."""
    nn.Module.to(model, dtype)  # PreTrainedModel.to has no usable types


def is_part(name: str, parts: list[str]) -> bool:
    """Whether a parameter's name begins with one of the parts, or matches it as a shell pattern."""
    return any(name.startswith(part) or fnmatchcase(name, part) for part in parts)


def freeze_all_but(model: nn.Module, parts: list[str], setting: str) -> None:
    """Freeze all parameters that are not in `parts` (see `is_part`).

    Args:
        setting: the key of `parts` in the recipe, for messages.

    Errors:
        UserError for a part that matches no parameter, or if no trained parameter is left.
    """
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    unknown = [part for part in parts if not any(is_part(name, [part]) for name in names)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and is_part(name, parts))
    if unknown or not any(parameter.requires_grad for parameter in model.parameters()):
        known = ", ".join(sorted({name.split(".")[0] for name in names}))
        raise UserError(f"{setting} {unknown or parts} matches no parameter; the model's parts are {known}")


def image_of(part: Mapping[str, Any], record: Record) -> Any:
    """The image of an image part. RecordError if it holds only codes."""
    if "image" not in part:
        raise RecordError(
            f"Record {shown(record.id)} holds codes instead of an image: use the shards of the images"
        )
    return part["image"]


@contextmanager
def naming(record: Record) -> Iterator[None]:
    """Turn all errors in the block into a RecordError with the record's id.

    For third-party text tokenizers, which raise various errors for text that they cannot encode.
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
    """A module that holds the trained model and returns its losses; it is what DeepSpeed wraps.

    Randomness: the trainer seeds torch before every micro-batch from (seed, rank, step, micro-batch);
    ``prepare`` may depend only on the draw number.
    """

    #: Makes examples and batches; this alone is sent to loader workers.
    examples: Examples

    def prepare(self, record: Record, draw: int) -> Any:
        """See `Examples.prepare`."""
        return self.examples.prepare(record, draw)

    def prepare_pieces(self, record: Record, draw: int, length: int) -> list[Any]:
        """See `Examples.prepare_pieces`."""
        return self.examples.prepare_pieces(record, draw, length)

    def collate(self, examples: list[Any]) -> Batch:
        """See `Examples.collate`."""
        return self.examples.collate(examples)

    def collate_packed(self, rows: list[list[Any]], length: int) -> Batch:
        """A batch of rows of ``length`` tokens, each of several examples."""
        raise NotImplementedError(f"{type(self).__name__} has no packed batches")

    @abstractmethod
    def target_counts(self, batch: Batch) -> dict[str, float]:
        """The number of targets of every loss term in this batch, without a forward pass."""

    @abstractmethod
    def forward(self, **batch: Any) -> dict[str, LossTerm]:
        """Every loss, summed over the batch's targets; the same terms for every batch."""

    @abstractmethod
    def export(self, folder: Path, dtype: torch.dtype) -> None:
        """Write the trained model into the existing ``folder``, in its public format and ``dtype``."""

    def rehearse_export(self, folder: Path) -> None:
        """Try, before training, all of `export` but the weights; ``folder`` is temporary."""

    #: Names of the parameter groups that ``optimizer.group_lr`` may give a learning rate.
    GROUPS: ClassVar[tuple[str, ...]] = ()

    def group_of(self, name: str, parameter: nn.Parameter) -> str:
        """The group of a parameter, one of ``GROUPS``."""
        return ""

    def initialise_from(self, folder: str) -> None:
        """Load the weights of an exported folder, unless the objective was built with them."""

    def set_attention(self, implementation: str) -> None:
        """Set the attention of all transformers models in here. UserError where one does not support it."""
        for module in self.modules():
            if isinstance(module, PreTrainedModel):
                set_attention(module, implementation, "run.attention")

    def enable_gradient_checkpointing(self) -> None:
        """Recompute the layers of transformers models in the backward pass."""
        for module in self.children():
            if isinstance(module, PreTrainedModel):
                module.gradient_checkpointing_enable({"use_reentrant": False})

    def check_source(self, name: str, manifest: Mapping[str, Any]) -> None:
        """Raise UserError for a data source that does not fit this objective."""

    def record_length(self, record: Record) -> int:
        """A rough length, for grouping records of similar length."""
        return 0

    def work(self, batch: Batch) -> Work:
        """Tokens, images and FLOPs of a batch, for the log."""
        return Work(images=float(len(batch["pixel_values"]))) if "pixel_values" in batch else Work()

    def source_sums(
        self, batch: Batch, source_ids: torch.Tensor, num_sources: int
    ) -> dict[str, torch.Tensor]:
        """Losses of the last forward pass by data source: for each term [sums, targets], (2, S) fp64.

        Args:
            batch: the input of the forward pass.
            source_ids: index of the source of each example (B,), or of each position (B, L).
        """
        return {}

    def before_step(self, step: int, upcoming: Upcoming, device: torch.device) -> None:
        """Called before every optimizer step; ``upcoming()`` previews the micro-batches from this step on."""

    def after_step(self, step: int) -> None:
        """Called after every optimizer step, to train networks outside the module (a discriminator)."""

    def after_skipped_step(self) -> None:
        """Called instead of `after_step` after a skipped step."""

    def extra_state(self) -> dict[str, Any]:
        """State for checkpoints in addition to the module's; the same on all processes."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Inverse of `extra_state`."""

    def extra_metrics(self) -> dict[str, float]:
        """Further metrics for the log (such as codebook usage); called when a log line is due."""
        return {}

    def summary(self) -> str:
        """A few words about the last `extra_metrics`, for the console."""
        return ""

    def alarms(self) -> dict[str, str]:
        """Problems found by the last `extra_metrics`: a message by a stable key for each."""
        return {}
