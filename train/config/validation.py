"""Section `validation`: what is measured while a run trains."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...common.limits import limited
from ...common.values import LARGEST_SEED
from .data import SourceConfig


@dataclass(frozen=True)
class ValidationConfig:
    """What is measured while a run trains, always on the same records.

    Args:
        every: steps between validations; one more follows the last step.
        sources: held-out shards by name; each gives its own losses.
        batches: micro-batches (of ``data.micro_batch_size`` records) of every source, over all ranks.
        prompts: an image is generated for each at every validation, with the same seeds, into
            ``validation/`` and TensorBoard. Not at ZeRO stage 3.
        seed: of the generated images.
        guidance_scale: of the generated images; None takes the model's own.
        general_questions: forty questions without images are answered before the first step and at every
            validation; ``general_answers_kept`` is the share of those answered correctly before the training
            that still are. For pretrained language models, and not at ZeRO stage 3.
    """

    every: int = limited(least=1, most=10**9)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    batches: int = limited(8, least=1, most=1_000_000)
    prompts: list[str] = field(default_factory=list)
    seed: int = limited(0, least=0, most=LARGEST_SEED)
    guidance_scale: float | None = limited(None, least=0.0, most=1000.0)
    general_questions: bool = False
