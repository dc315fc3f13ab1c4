"""The training loop.

Everything random in a step follows from (seed, rank, step), and the data from the step number (packed rows:
from a cursor), so a run resumes exactly from weights, optimizer state, the step and the cursors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.loading.attention import check_attention
from ..common.machine import LARGE_BATCH, suitable_threads
from ..data_pipelines.stream.loader import StreamBatch
from ..mllm.assembly.weights import Weights
from .backend.checkpoint import Checkpoints
from .backend.checkpoint_files import RECIPE
from .backend.deepspeed import build_engine, set_clipping
from .backend.distributed import World, join_world, leave_world
from .backend.export import export_trained
from .backend.placement import place
from .backend.resume import Change, allowed_changes, require_same_groups
from .backend.resume_keys import BATCH, PACKING, is_named
from .backend.saved_state import load_file
from .backend.zero import deepspeed_config
from .callbacks.base import Callback, TrainState
from .callbacks.checkpointing import Checkpointing
from .callbacks.general_answers import general_answers
from .callbacks.hang_guard import HangGuard
from .callbacks.losses import LossMetrics
from .callbacks.monitors import Monitor
from .callbacks.step_guard import StepGuard
from .callbacks.stop_request import RunStopped, StopRequest
from .callbacks.throughput import Throughput
from .callbacks.validation import Validation
from .callbacks.weight_average import WeightAverage
from .config.recipe import Recipe, save_resolved
from .config.starting_point import reading_model
from .metrics import Metrics
from .objectives import LossTerm, Objective, build_objective
from .objectives.base import to_device
from .optimizers import GroupSettings, build_optimizer, build_scheduler
from .planning.language import forgetting
from .planning.rehearsal import rehearse_export, require_packages
from .run_folder import CHECKPOINTS, MODEL, run_folder
from .stream import Stream


@dataclass
class Trainer(TrainState):
    """Trains an objective; everything besides the training step is a `Callback`."""

    def fit(self) -> None:
        """Train until ``last_step``."""
        run, stream, objective = self.recipe.run, self.stream, self.objective
        accumulation = run.gradient_accumulation_steps
        batches = stream.run(objective, self.step * accumulation)
        self.engine.train()
        while self.step < self.last_step:
            self.call("before_step")
            upcoming = partial(stream.batches, objective, self.step * accumulation)
            objective.before_step(self.step, upcoming, self.world.device)

            loaded = [next(batches) for _ in range(accumulation)]
            self.micro_batches = [_on_device(batch, self.world.device) for batch in loaded]
            self.call("after_loading")

            self._forward_and_backward()

            self.call("before_update")
            self.engine.step()
            self.call("after_update")

            self.step += 1
            if self.skipped is None:
                objective.after_step(self.step - 1)
                self.call("after_step")
            else:
                objective.after_skipped_step()
                self.call("on_skipped_step")
            if self.step % run.log_every == 0 or self.step == self.last_step:
                self.call("on_log")
                self.call("on_metrics", self.metrics.read())
            self.call("on_step_end")
        self.call("on_train_end")

    def _forward_and_backward(self) -> None:
        """Accumulate the gradient of the micro-batches; each term is a mean over its targets in all."""
        self.target_counts = [self.objective.target_counts(batch.inputs) for batch in self.micro_batches]
        counts = self._over_all_processes(self.target_counts)
        self.losses = []
        for number, batch in enumerate(self.micro_batches):
            if number:
                self.engine.step()  # only counts micro-batches; weights are updated after the last one
            _seed_micro_batch(self.recipe.seed, self.world.rank, self.step, number)
            terms = self.engine(**batch.inputs)
            loss = weighted_loss(terms, counts, self.world.size * len(self.micro_batches))
            self.losses.append(loss.detach())
            self.call("after_forward", number, terms)
            self.engine.backward(loss)

    def _over_all_processes(self, counts: list[dict[str, float]]) -> dict[str, torch.Tensor]:
        """The sums on the device, where the losses are divided by them: the host does not wait for them."""
        device = self.world.device
        sums = {name: sum(one[name] for one in counts) for name in counts[0]}
        totals = [torch.full((1,), value, dtype=torch.float64, device=device) for value in sums.values()]
        return dict(zip(sums, self.world.sum(torch.cat(totals)), strict=True))


def train(recipe: Recipe, resume_with: Sequence[str] = ()) -> Path | None:
    """Run a recipe, resuming from its newest checkpoint.

    Args:
        resume_with: keys of the recipe that may have changed since, although they should stay.

    Returns the folder of the exported model, or None if ``run.stop_after`` ended the run early.

    Errors:
        RunStopped if SIGTERM or SIGINT ended the run early, after a checkpoint.
    """
    timeout = timedelta(minutes=recipe.run.timeout_minutes)
    world = join_world(recipe.run.threads, timeout)
    hang = HangGuard(world.rank, timeout)
    with hang.watched():
        try:
            require_packages(recipe)
            with run_folder(recipe, world) as folder:
                model = _train_in(folder, recipe, world, hang, tuple(resume_with))
        except RunStopped:
            leave_world()
            raise
        leave_world()
    return model


def _train_in(
    folder: Path, recipe: Recipe, world: World, hang: HangGuard, named: tuple[str, ...]
) -> Path | None:
    torch.manual_seed(recipe.seed)  # model initialisation: the same on every process
    hang.enter("opening the data and the checkpoints")
    run, stream = recipe.run, _opened(recipe, world)
    data = stream.fingerprints()
    kept = run.keep_checkpoints, run.keep_best
    checkpoints = Checkpoints(folder / CHECKPOINTS, world, *kept, data, in_background=run.async_save)
    start = checkpoints.newest()
    changed: list[Change] = []
    if start:
        changed = world.on_main(lambda: allowed_changes(checkpoints.path(start), recipe, data, named))
    hang.enter("building the model")
    objective = _prepared_objective(recipe, world, stream)
    world.on_main(lambda: rehearse_export(objective))
    if start:
        require_same_groups(checkpoints.path(start), objective, recipe.optimizer)
    engine, settings = initialise_engine(recipe, world, objective)
    average = None if run.weight_average is None else WeightAverage(objective, run.weight_average)
    request = StopRequest(world)
    trainer = Trainer(
        recipe=recipe,
        world=world,
        objective=objective,
        engine=engine,
        stream=stream,
        metrics=Metrics(world),
        step=start,
        last_step=min(run.stop_after or run.steps, run.steps),
    )
    guard = StepGuard(engine, folder, run.spike_factor, run.max_skipped)
    trainer.callbacks = [hang, request, guard, *([] if average is None else [average])]
    trainer.callbacks += general_answers(recipe, objective)
    if start:
        stream.may_repack = any(is_named(key, named) for key in PACKING)
        any_batch = any(is_named(key, named) for key in BATCH)
        checkpoints.load(engine, start, trainer.load_state_dict, any_batch)
        settings.use(engine.optimizer, engine.lr_scheduler)
        set_clipping(engine, recipe.optimizer.gradient_clipping)
    if world.is_main:
        for change in changed:
            why = ", allowed by --resume-with-changes" if is_named(change.key.split()[0], named) else ""
            print(f"resuming from step {start} with {change}{why}", file=sys.stderr)
        save_resolved(recipe, folder / RECIPE)
    threads = nullcontext() if run.threads else suitable_threads(objective, LARGE_BATCH)
    with threads, request:
        trainer.callbacks += _reporting(trainer, checkpoints)
        trainer.fit()
    if trainer.step < run.steps:
        if trainer.stopping:
            raise RunStopped(trainer.step, request.signum)
        return None
    hang.enter("exporting the model")
    with nullcontext() if average is None else average.applied():
        world.on_main(
            lambda: export_trained(objective, checkpoints.path(trainer.step), recipe, folder / MODEL)
        )
    return folder / MODEL


def _opened(recipe: Recipe, world: World) -> Stream:
    """The run's data. What is wrong with them on one process is an error on all."""
    streams: list[Stream] = []
    world.everywhere(lambda: streams.append(Stream.open(recipe, world)))
    return streams[0]


def _reporting(trainer: Trainer, checkpoints: Checkpoints) -> list[Callback]:
    """The callbacks that measure, report and save; each depends on the ones before it."""
    recipe, world, run = trainer.recipe, trainer.world, trainer.recipe.run
    samples = recipe.data.micro_batch_size * run.gradient_accumulation_steps * world.size
    validation: list[Callback] = []
    wanted = recipe.validation
    # Made first: what is wrong with it is reported before the progress bar.
    if wanted is not None and (wanted.sources or wanted.prompts):
        validation = [Validation(recipe, wanted, trainer.objective, world)]
    return [
        LossMetrics(list(recipe.data.sources)),
        Throughput(world, run.peak_tflops),
        Monitor(recipe, world, trainer.step, samples),
        *validation,
        Checkpointing(checkpoints, run.save_every),
    ]


def _prepared_objective(recipe: Recipe, world: World, stream: Stream) -> Objective:
    """The objective of a recipe with its model. UserError for data that do not fit it."""
    check_attention(recipe.run.attention, "run.attention", training=True)
    objective = build_objective(recipe, weights_at_start(recipe, world))
    objective.set_attention(recipe.run.attention)
    if recipe.run.gradient_checkpointing:
        objective.enable_gradient_checkpointing()
    for name, source in zip(recipe.data.sources, stream.sources, strict=True):
        objective.check_source(name, source.manifest)
    if recipe.init_from:
        with reading_model(recipe.init_from):
            objective.initialise_from(recipe.init_from)
    if world.is_main and (warning := forgetting(recipe, objective, stream.manifests())):
        print(f"warning: {warning}", file=sys.stderr)
    return objective


def initialise_engine(recipe: Recipe, world: World, objective: Objective) -> tuple[Any, GroupSettings]:
    """The objective in DeepSpeed's engine, and the settings of its optimizer's groups."""
    optimizer = build_optimizer(objective, recipe.optimizer)
    settings = GroupSettings(optimizer)
    scheduler = build_scheduler(optimizer, recipe.run.steps, recipe.schedule)
    config = deepspeed_config(recipe, world.size)
    place(objective, world, _dtype(recipe), config)
    engine = build_engine(objective, optimizer, scheduler, config, read=partial(load_file, mapped=False))
    return engine, settings


def weights_at_start(recipe: Recipe, world: World) -> Weights:
    """What this process needs of the model's weights before they are placed."""
    if recipe.mllm is None:
        return Weights.LOADED
    if not world.is_main:
        return Weights.ABSENT
    # Adapters are made from the weights that they adapt, in fp32.
    return Weights.MAPPED if recipe.mllm.lora is None else Weights.LOADED


def _dtype(recipe: Recipe) -> torch.dtype | None:
    """The number format of the trained weights; other objectives keep the one of the networks they load."""
    if recipe.run.precision == "bf16":
        return torch.bfloat16
    return None if recipe.mllm is None else torch.float32


def weighted_loss(terms: dict[str, LossTerm], counts: dict[str, torch.Tensor], divisor: int) -> torch.Tensor:
    """Σ weight · total / global count, times the divisor of DeepSpeed (processes · accumulation)."""
    factors = {name: term.weight * divisor / counts[name].clamp(min=1.0) for name, term in terms.items()}
    shares = [term.total * factors[name].to(term.total.dtype) for name, term in terms.items()]
    return torch.stack(shares).sum()


def _on_device(batch: StreamBatch, device: torch.device) -> StreamBatch:
    source_ids = to_device({"ids": batch.source_ids}, device)["ids"]
    return replace(batch, inputs=to_device(batch.inputs, device), source_ids=source_ids)


def _seed_micro_batch(seed: int, rank: int, step: int, number: int) -> None:
    state = np.random.SeedSequence((seed, rank, step, number)).generate_state(2, np.uint32)
    torch.manual_seed(int(state[0]) << 32 | int(state[1]))
