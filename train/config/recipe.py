"""The recipe of a training run: frozen dataclasses, one a section, checked together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...common.errors import UserError
from ...common.limits import limited
from ...common.limits import problems as out_of_range
from ...common.values import LARGEST_SEED
from .contrastive import ContrastiveConfig
from .data import DataConfig
from .deepspeed_keys import deepspeed_problems
from .mllm import MllmObjectiveConfig
from .optimizer import OptimizerConfig
from .paths import locate
from .run import RunConfig
from .schedule import ScheduleConfig
from .tokenizer import TokenizerObjectiveConfig
from .validation import ValidationConfig

OBJECTIVES = ("contrastive", "tokenizer", "mllm")


@dataclass(frozen=True)
class Recipe:
    """A complete training run. See the section classes for each field.

    Exactly one of the objectives ``contrastive``, ``tokenizer`` and ``mllm`` is given; all other sections are
    shared by them.

    Args:
        output: folder of the run: checkpoints, logs, and the exported model in ``model/``.
        init_from: saved model (its folder, its hub id, or nano) whose weights start the run; not a resume:
            step, optimizer and data begin anew. It knows its own architecture, language model, tokenizers and
            chat format, so that a recipe names nothing of these.
    """

    output: str
    data: DataConfig
    run: RunConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    contrastive: ContrastiveConfig | None = None
    tokenizer: TokenizerObjectiveConfig | None = None
    mllm: MllmObjectiveConfig | None = None
    validation: ValidationConfig | None = None
    init_from: str | None = None
    seed: int = limited(0, least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        locate(self, "output", "init_from")
        # Numbers first, because the other checks calculate with them.
        wrong = out_of_range(self) or [
            *_objective_problems(self),
            *_data_problems(self),
            *_sharding_problems(self),
            *deepspeed_problems(self.run.deepspeed),
            *_optimizer_problems(self),
            *_validation_problems(self),
        ]
        if wrong:
            raise UserError("recipe: " + "; ".join(wrong))

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _objective_problems(recipe: Recipe) -> Iterator[str]:
    """What is to be trained, and where it goes."""
    sections = [name for name in OBJECTIVES if getattr(recipe, name) is not None]
    if len(sections) != 1:
        yield f"exactly one of {', '.join(OBJECTIVES)} must be given, not {sections or 'none'}"
    if not recipe.output.strip():
        yield "output is empty; give the folder of the run"
    if recipe.mllm is None:
        return
    if recipe.init_from is None:
        if recipe.mllm.llm is None:
            yield "mllm.llm is missing; name a language model or give its configuration, or give init_from"
        if recipe.mllm.visual_tokenizer is None:
            yield "mllm.visual_tokenizer is missing; name its folder, or give init_from"
    if recipe.mllm.lora is None:
        return
    if recipe.mllm.trained is not None:
        yield (
            "mllm.trained and mllm.lora both say what is trained; leave one of them out (adapters come with "
            "the projectors, the heads and the special tokens)"
        )
    if isinstance(recipe.mllm.llm, dict) and recipe.init_from is None:
        yield (
            "mllm.lora adapts a trained LLM, but mllm.llm is a configuration of random weights; name a "
            "folder or hub id, or give init_from"
        )


def _data_problems(recipe: Recipe) -> Iterator[str]:
    """The repeats of the sources, and packing."""
    data = recipe.data
    if not data.sources:
        yield "data.sources is empty; name at least one folder of shards"
    elif all(source.max_repeats is not None for source in data.sources.values()):
        yield (
            "every source has max_repeats, so the data would end; leave it out for at least one of "
            "data.sources"
        )
    for name, what in (("max_length", "is for"), ("pack_length", "packs")):
        if getattr(data, name) and recipe.mllm is None:
            yield f"data.{name} {what} token sequences, so only mllm can have it; set it to 0"
    if data.pack_length and data.sort_window > 1:
        yield "data.pack_length leaves nothing to sort; set data.sort_window to 1"


def _sharding_problems(recipe: Recipe) -> Iterator[str]:
    """What ZeRO's stage and offloading cannot do."""
    run = recipe.run
    if run.offload == "optimizer" and run.zero_stage == 0:
        yield "run.offload optimizer needs run.zero_stage 1, 2 or 3"
    if run.offload == "all" and run.zero_stage != 3:
        yield "run.offload all needs run.zero_stage 3; only there are the weights divided"
    if run.zero_stage == 3 and recipe.mllm is None:
        yield "run.zero_stage 3 is for the unified model (mllm); a tokenizer fits stage 2"
    if run.zero_stage == 3 and run.weight_average is not None:
        yield "run.weight_average needs run.zero_stage 0-2; at 3 no process has complete weights"
    if run.precision == "bf16" and run.zero_stage == 0:
        yield "run.precision bf16 needs run.zero_stage 1 to 3 (the stage-0 bf16 optimizer drifts)"


def _optimizer_problems(recipe: Recipe) -> Iterator[str]:
    """Muon, and the guard against spikes."""
    run, optimizer = recipe.run, recipe.optimizer
    muon = optimizer.muon_lr is not None
    if muon and run.zero_stage and optimizer.gradient_clipping:
        yield (
            "optimizer.muon_lr with run.zero_stage 1 to 3 needs optimizer.gradient_clipping 0 (DeepSpeed "
            "would clip Muon's updates there, not the gradients)"
        )
    if muon and run.zero_stage == 3:
        yield "optimizer.muon_lr works with run.zero_stage 0, 1 or 2 (at 3 no GPU has a complete gradient)"
    if muon and run.zero_stage and run.spike_factor:
        yield (
            "run.spike_factor with optimizer.muon_lr needs run.zero_stage 0; beyond it the norm that "
            "DeepSpeed reports is that of Muon's updates, which have no spikes"
        )
    if 0 < run.spike_factor <= 1.0:
        yield f"run.spike_factor is {run.spike_factor}; it must be above 1, or 0 to switch it off"


def _validation_problems(recipe: Recipe) -> Iterator[str]:
    validation = recipe.validation
    if validation is None:
        return
    if not all(prompt.strip() for prompt in validation.prompts):
        yield "validation.prompts holds an empty one; give each at least one word"
    if not (validation.sources or validation.prompts or validation.general_questions):
        yield "validation has neither sources nor prompts nor general_questions; give one or leave it out"
    if recipe.tokenizer is not None and recipe.tokenizer.adversarial is not None:
        yield "validation does not go with tokenizer.adversarial, whose losses change as it trains"
    if validation.prompts and recipe.run.zero_stage == 3:
        yield "validation.prompts need run.zero_stage 0-2; at 3 no process has the complete weights"
    if validation.general_questions and recipe.run.zero_stage == 3:
        yield "validation.general_questions need run.zero_stage 0-2; at 3 no process has the complete weights"
    if validation.general_questions and recipe.mllm is None:
        yield "validation.general_questions are for the unified model (section mllm); only it answers"
    if validation.prompts and recipe.mllm is None:
        yield "validation.prompts are for the unified model (section mllm); only it generates images"


def save_resolved(recipe: Recipe, path: Path) -> None:
    """Write the recipe as it was understood, defaults and overrides included."""
    path.write_text(yaml.safe_dump(plain_recipe(recipe), sort_keys=False))


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as `save_resolved` writes it: mappings, lists, texts and numbers."""
    plain: dict[str, Any] = _plain(recipe.as_dict())
    return plain


def _plain(value: Any) -> Any:
    """Tuples to lists, so that the YAML stays readable by any parser."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
