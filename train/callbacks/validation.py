"""Held-out losses and drawings while a run goes on, always of the same records, prompts and seeds."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.errors import UserError, shown
from ...data_pipelines.records import RecordError
from ...data_pipelines.shards.reader import ShardDataset
from ...mllm import DualTokenPipeline
from ...tokenizer import DualTokenizer
from ..backend.distributed import World
from ..config.recipe import Recipe
from ..config.validation import ValidationConfig
from ..objectives import Objective
from ..objectives.base import Batch
from ..objectives.mllm import MllmObjective
from .loss_meter import LossMeter, global_counts


class Validation:
    """The validation of one run; every rank has one and calls all of it."""

    def __init__(self, recipe: Recipe, config: ValidationConfig, objective: Objective, world: World) -> None:
        self.recipe, self.config, self.objective, self.world = recipe, config, objective, world
        self._check_prompts()
        self.batches = {name: self._read(name, source.path) for name, source in config.sources.items()}
        self._visual_tokenizer: DualTokenizer | None = None

    @classmethod
    def open(cls, recipe: Recipe, objective: Objective, world: World) -> Validation | None:
        """None for a recipe without validation. UserError for shards that do not exist or do not fit."""
        config = recipe.validation
        return None if config is None else cls(recipe, config, objective, world)

    def is_due(self, done: int, steps: int) -> bool:
        return done % self.config.every == 0 or done == steps

    @torch.no_grad()
    def losses(self, engine: Any) -> dict[str, float]:
        """Means over every source, by source/term."""
        autocast, device = self.recipe.run.precision == "bf16_autocast", self.world.device
        engine.eval()
        means: dict[str, float] = {}
        for source, batches in self.batches.items():
            meter = LossMeter(self.world)
            on_device = [
                {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
                for batch in batches
            ]
            meter.add_counts(global_counts(self.objective, on_device, self.world))
            for batch in on_device:
                with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                    meter.add(engine(**batch))
            means |= {f"{source}/{name}": value for name, value in meter.read(0).items()}
        engine.train()
        return means

    def draw(self, engine: Any, step: int) -> dict[str, Path]:
        """Draw every prompt into ``validation/step-N/``; the files by prompt, on the main rank."""
        if not self.config.prompts or not self.world.is_main:
            return {}
        assert isinstance(self.objective, MllmObjective)
        engine.eval()
        with self._pipeline(self.objective) as pipeline, _kept_random_state(self.world.device):
            drawn = self._draw(pipeline, Path(self.recipe.output) / "validation" / f"step-{step:08d}")
        engine.train()
        return drawn

    def _draw(self, pipeline: DualTokenPipeline, folder: Path) -> dict[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        autocast = self.recipe.run.precision == "bf16_autocast"
        guidance = self.config.guidance_scale
        options: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
        for number, prompt in enumerate(self.config.prompts):
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=autocast):
                image = pipeline.generate_images(prompt, seed=self.config.seed, **options)[0]
            name = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
            files[prompt] = folder / f"{number:02d}-{name}.png"
            image.save(files[prompt])
        return files

    def _check_prompts(self) -> None:
        """UserError for a prompt that leaves no room for its image, which the first drawing would fail at."""
        if not isinstance(self.objective, MllmObjective):
            return  # the recipe has no prompts
        config, processor = self.objective.model.config, self.objective.processor
        context = getattr(config.text_config, "max_position_embeddings", None) or sys.maxsize
        room = context - config.num_positions - 2  # the image, and the tokens that open and close it
        for number, prompt in enumerate(self.config.prompts):
            conversation = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
            inputs = processor.apply_chat_template([conversation], add_generation_prompt=True)
            if (length := inputs["input_ids"].shape[1]) > room:
                raise UserError(
                    f"validation.prompts[{number}] takes {length} tokens, and {room} fit before an image in "
                    f"the model's context of {context}: shorten {shown(prompt, 40)}"
                )

    @contextmanager
    def _pipeline(self, objective: MllmObjective) -> Iterator[DualTokenPipeline]:
        """The model being trained with its visual tokenizer, which only drawing needs."""
        if self._visual_tokenizer is None:
            self._visual_tokenizer = DualTokenizer.from_pretrained(objective.config.visual_tokenizer)
        model = objective.model
        model.attach_visual_tokenizer(self._visual_tokenizer)
        try:
            yield DualTokenPipeline(model, objective.processor)
        finally:
            model.detach_visual_tokenizer()

    def _read(self, name: str, path: str) -> list[Batch]:
        """This rank's micro-batches of a source: records at equal distances through all of it."""
        if not Path(path).is_dir():
            raise UserError(
                f"validation.sources.{name}: no such folder: {path}; write it with dualtoken prepare"
            )
        source = ShardDataset(path, split="all", tolerant=True)
        self.objective.check_source(name, source.manifest)
        size, wanted = self.recipe.data.micro_batch_size, self.config.batches
        places = np.unique(np.linspace(0, len(source) - 1, min(len(source), size * wanted)).astype(int))
        examples = []
        for place in places.tolist():
            try:
                examples.append(self.objective.prepare(source[place], place))
            except RecordError:
                continue  # named when the source was prepared or trained on
        if not examples:
            raise UserError(f"validation.sources.{name}: {path} has no record that can be used")
        groups = [examples[i : i + size] for i in range(0, len(examples), size)]
        # At stage 3 a forward pass is a collective: all ranks then do the same passes. So they do where
        # there are too few batches to share.
        share = self.world.size if self.recipe.run.zero_stage < 3 and len(groups) >= self.world.size else 1
        return [self.objective.collate(group) for group in groups[self.world.rank % share :: share]]


@contextmanager
def _kept_random_state(device: torch.device) -> Iterator[None]:
    """Drawing takes no random number away from training."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
