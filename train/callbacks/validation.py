"""Held-out losses and generated images during a run, always for the same records, prompts and seeds."""

from __future__ import annotations

import logging
import re
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...common.errors import UserError, first_line, shown
from ...common.paths import user_path
from ...data_pipelines.records import RecordError
from ...data_pipelines.shards.reader import ShardDataset
from ...data_pipelines.shards.storage import is_url
from ...mllm import DualTokenPipeline
from ...mllm.language_model import context_length
from ...tokenizer import DualTokenizer
from ..backend.distributed import World
from ..config.recipe import Recipe
from ..config.validation import ValidationConfig
from ..metrics import Metrics
from ..objectives import Objective
from ..objectives.base import Batch, to_device
from ..objectives.mllm import MllmObjective
from .base import Callback, TrainState
from .losses import PREFIX, require_finite_losses
from .stop_request import StopRequest

logger = logging.getLogger(__name__)


class Validation(Callback):
    """Validates every ``config.every`` steps and after the last one; `on_validation` gets the results.

    Errors:
        UserError for shards that do not exist or do not fit, and for a prompt that is too long.
    """

    def __init__(self, recipe: Recipe, config: ValidationConfig, objective: Objective, world: World) -> None:
        self.recipe, self.config, self.objective, self.world = recipe, config, objective, world
        self._check_prompts()
        self.batches = {name: self._read(name, source.path) for name, source in config.sources.items()}
        self._visual_tokenizer: DualTokenizer | None = None

    def on_step_end(self, state: TrainState) -> None:
        is_last = state.step == self.recipe.run.steps
        if not is_last and (state.step % self.config.every or self._is_stopping(state)):
            return
        state.engine.eval()
        losses = self._losses(state)
        images = {} if losses is None else self._generate_images(state)
        state.engine.train()
        if losses is None:
            return
        if losses:
            state.validation_loss = statistics.fmean(losses.values()), state.step
        state.call("on_validation", losses, images)

    @staticmethod
    def _is_stopping(state: TrainState) -> bool:
        """Whether a signal ends the run, whose time is for the checkpoint; the same on all processes."""
        requests = [one for one in state.callbacks if isinstance(one, StopRequest)]
        return state.stopping or any(request.agreed() for request in requests)

    @torch.no_grad()
    def _losses(self, state: TrainState) -> dict[str, float] | None:
        """Mean losses by ``SOURCE/TERM``; None where a signal ends the run before they are complete."""
        metrics = Metrics(self.world)
        for source, batches in self.batches.items():
            if state.step != self.recipe.run.steps and self._is_stopping(state):
                return None
            for batch in batches:
                batch = to_device(batch, self.world.device)
                counts = self.objective.target_counts(batch)
                terms = state.engine(**batch)
                for name, term in terms.items():
                    metrics.record(f"{PREFIX}{source}/{name}", term.total, counts[name])
        means = metrics.read()
        require_finite_losses(means, state.step)
        return {name.removeprefix(PREFIX): value for name, value in means.items()}

    def _generate_images(self, state: TrainState) -> dict[str, Path]:
        """Write an image for every prompt to ``validation/step-N/``; the files by prompt (main process)."""
        if not self.config.prompts or not self.world.is_main:
            return {}
        assert isinstance(self.objective, MllmObjective)
        folder = Path(self.recipe.output) / "validation" / f"step-{state.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        guidance = self.config.guidance_scale
        options: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
        device = self.world.device
        kept_random_state = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with self._pipeline(self.objective) as pipeline, kept_random_state:
            for number, prompt in enumerate(self.config.prompts):
                with state.autocast():
                    image = pipeline.generate_images(prompt, seed=self.config.seed, **options)[0]
                name = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60]
                files[prompt] = folder / f"{number:02d}-{name}.png"
                image.save(files[prompt])
        return files

    def _check_prompts(self) -> None:
        """Raise UserError for a prompt that leaves no room for its image in the model's context."""
        if not isinstance(self.objective, MllmObjective):
            return  # other objectives have no prompts
        config, processor = self.objective.model.config, self.objective.processor
        context = context_length(config.text_config) or sys.maxsize
        room = context - config.num_positions - 2  # the image and its start and end tokens
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
        """The model being trained with its visual tokenizer, which only image generation needs."""
        if self._visual_tokenizer is None:
            self._visual_tokenizer = objective.load_visual_tokenizer()
        model = objective.model
        model.attach_visual_tokenizer(self._visual_tokenizer)
        try:
            yield DualTokenPipeline(model, objective.processor)
        finally:
            model.detach_visual_tokenizer()

    def _open(self, name: str, path: str) -> ShardDataset:
        """The shards of a source, in a folder or behind a URL. UserError for any that does not fit."""
        if not is_url(path) and not user_path(path).is_dir():
            raise UserError(
                f"validation.sources.{name}: no such folder: {path}; write it with dualtoken prepare"
            )
        source = ShardDataset(path, split="all", tolerant=True)
        self.objective.check_source(name, source.manifest)
        return source

    def _read(self, name: str, path: str) -> list[Batch]:
        """This process's micro-batches of a source: evenly spaced records."""
        opened: list[ShardDataset] = []
        self.world.everywhere(lambda: opened.append(self._open(name, path)))
        source = opened[0]
        size, wanted = self.recipe.data.micro_batch_size, self.config.batches
        indices = np.unique(np.linspace(0, len(source) - 1, min(len(source), size * wanted)).astype(int))
        found: dict[int, Any] = {}
        reason = ""
        for index in indices.tolist():
            try:
                found[index] = self.objective.prepare(source[index], index)
            except RecordError as error:
                reason = first_line(error)
        # Only what all processes can read, so that they have the same batches.
        usable = set[int].intersection(*map(set, self.world.gather(sorted(found))))
        if not usable:
            raise UserError(f"validation.sources.{name}: {path} has no usable record {reason}".rstrip())
        if len(usable) < len(indices) and self.world.is_main:
            lost = f"{len(indices) - len(usable)} of {len(indices)} records cannot be used"
            logger.warning("validation.sources.%s: %s %s", name, lost, f"({reason})" if reason else "")
        examples = [found[index] for index in sorted(usable)]
        groups = [examples[i : i + size] for i in range(0, len(examples), size)]
        # At stage 3 a forward pass is a collective, so all processes do the same passes; so do they if there
        # are too few batches to share.
        share = self.world.size if self.recipe.run.zero_stage < 3 and len(groups) >= self.world.size else 1
        return [self.objective.collate(group) for group in groups[self.world.rank % share :: share]]
