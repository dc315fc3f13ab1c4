"""The training loop.

One step: take the step's micro-batches, count their targets over all ranks, run forward and backward
through DeepSpeed, let it step, log, save. Everything random in a step follows from (seed, rank, step), and
the data stream from the step number (packed rows: from a cursor), so a run resumes exactly from a checkpoint
that holds only weights, optimizer state, the step and the cursors.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from ..common.errors import UserError, first_line, shown
from ..common.files import atomic_folder
from ..common.machine import LARGE_BATCH, suitable_threads
from ..data_pipelines.stream.loader import StreamBatch
from .backend.checkpoint import Checkpoints, JudgedBy
from .backend.deepspeed_internals import read_strictly, set_clipping
from .backend.distributed import World, join_world, leave_world
from .backend.export import export_checkpoint
from .backend.resume import Change, agreed_changes, require_same_groups, resuming_with
from .backend.zero import deepspeed_config
from .callbacks.hang_guard import HangGuard
from .callbacks.loss_meter import LossMeter, SourceSums, global_counts
from .callbacks.loss_window import LossWindow
from .callbacks.monitors import Monitor
from .callbacks.step_guard import StepGuard
from .callbacks.stop_request import RunStopped, StopRequest
from .callbacks.throughput import Throughput
from .callbacks.validation import Validation
from .callbacks.weight_average import WeightAverage
from .config.recipe import Recipe, save_resolved
from .objectives import LossTerm, Objective, build_objective
from .objectives.base import Batch
from .optimizers import GroupSettings, build_optimizer, build_scheduler
from .planning.rehearsal import rehearse_export, require_packages
from .run_folder import CHECKPOINTS, MODEL, run_folder
from .stream import Stream

EXPORT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train(recipe: Recipe) -> Path | None:
    """Run a recipe, resuming from its newest checkpoint.

    Returns the folder of the exported model, or None when ``run.stop_after`` ended the run before its last
    step.

    Errors:
        RunStopped when SIGTERM or SIGINT ended the run early, after a checkpoint.
    """
    timeout = timedelta(minutes=recipe.run.timeout_minutes)
    world = join_world(recipe.run.threads, timeout)
    hang = HangGuard(world.rank, timeout)
    with hang.watched():
        try:
            folder = _train(recipe, world, hang)
        except RunStopped:
            leave_world()
            raise
        leave_world()
    return folder


def _train(recipe: Recipe, world: World, hang: HangGuard) -> Path | None:
    require_packages(recipe)
    with run_folder(recipe, world) as folder:
        return _train_in(folder, recipe, world, hang)


def _train_in(folder: Path, recipe: Recipe, world: World, hang: HangGuard) -> Path | None:
    torch.manual_seed(recipe.seed)  # model initialisation: the same on every rank
    hang.enter("opening the data and the checkpoints")
    stream = Stream.open(recipe, world)
    run, data = recipe.run, stream.fingerprints()
    checkpoints = Checkpoints(folder / CHECKPOINTS, world, run.keep_checkpoints, run.keep_best, data)
    start = checkpoints.newest()
    changed: list[Change] = []
    if start:
        changed = world.on_main(lambda: agreed_changes(checkpoints.path(start), recipe, data))
    hang.enter("building the model")
    objective = build_objective(recipe)
    objective.set_attention(recipe.run.attention)
    if recipe.run.gradient_checkpointing:
        objective.enable_gradient_checkpointing()
    for name, source in zip(recipe.data.sources, stream.sources, strict=True):
        objective.check_source(name, source.manifest)
    if recipe.init_from:
        objective.initialise_from(recipe.init_from)
    world.on_main(lambda: rehearse_export(objective))
    if start:
        require_same_groups(checkpoints.path(start), objective, recipe.optimizer)
    engine, settings = _initialise_engine(recipe, world, objective)
    decay = run.weight_average
    average = None if decay is None else WeightAverage(objective, decay)
    guard = StepGuard(engine, engine.basic_optimizer, world, folder, run.spike_factor, run.max_skipped)
    beside = BesideEngine(objective, average, stream, guard)
    if start:
        checkpoints.load(engine, start, beside.load_state_dict)
        settings.use(engine.optimizer, engine.lr_scheduler)
        set_clipping(engine, recipe.optimizer.gradient_clipping)
    if world.is_main:
        for line in resuming_with(changed, start):
            print(line, file=sys.stderr)
        save_resolved(recipe, folder / "recipe.yaml")
    threads = nullcontext() if run.threads else suitable_threads(objective, LARGE_BATCH)
    with threads, StopRequest(world) as request:
        done = _run_steps(recipe, world, engine, beside, stream, checkpoints, start, hang, request)
    if request.stopping and done < recipe.run.steps:
        raise RunStopped(done, request.signum)
    if done < recipe.run.steps:
        return None
    hang.enter("exporting the model")
    with nullcontext() if average is None else average.applied():
        world.on_main(lambda: _export(objective, folder / MODEL, recipe, checkpoints.path(done)))
    return folder / MODEL


@dataclass(frozen=True)
class BesideEngine:
    """What is saved beside DeepSpeed's engine: parts of the objective, averaged weights, the packed stream's
    place, the usual gradient norm."""

    objective: Objective
    average: WeightAverage | None
    stream: Stream
    guard: StepGuard

    def after_step(self, step: int) -> None:
        self.objective.after_step(step)
        if self.average is not None:
            self.average.update()

    def state_dict(self) -> dict[str, Any]:
        average = {} if self.average is None else self.average.state_dict()
        state = {
            "objective": self.objective.extra_state(),
            "weight_average": average,
            "stream": self.stream.state_dict(),
            "guard": self.guard.state_dict(),
        }
        return {name: part for name, part in state.items() if part}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "objective" in state:
            self.objective.load_extra_state(state["objective"])
        if self.average is not None:
            if "weight_average" in state:
                self.average.load_state_dict(state["weight_average"])
            else:
                self.average.restart()
        if "stream" in state:
            self.stream.load_state_dict(state["stream"])
        if "guard" in state:
            self.guard.load_state_dict(state["guard"])


def _run_steps(
    recipe: Recipe,
    world: World,
    engine: Any,
    beside: BesideEngine,
    stream: Stream,
    checkpoints: Checkpoints,
    start: int,
    hang: HangGuard,
    request: StopRequest,
) -> int:
    """The loop; returns the number of steps that are now done."""
    run, objective = recipe.run, beside.objective
    stop = min(run.stop_after or run.steps, run.steps)
    accumulation = run.gradient_accumulation_steps
    samples = recipe.data.micro_batch_size * accumulation * world.size
    validation = Validation.open(recipe, objective, world)
    monitor = Monitor(Path(recipe.output), world, run.steps, start, samples, run.wandb_project)
    batches = stream.run(objective, start * accumulation)
    meter, throughput = LossMeter(world, list(recipe.data.sources)), Throughput(world, run.peak_tflops)
    window = LossWindow(world)
    validated: dict[str, float] = {}
    engine.train()
    for step in range(start, stop):
        done = step + 1
        hang.enter(f"step {done}: waiting for data")
        objective.before_step(step, partial(stream.batches, objective, step * accumulation), world.device)
        micro_batches = [next(batches) for _ in range(accumulation)]
        if request.agreed():  # asked here, where the ranks wait for each other anyway
            stop = done
        hang.enter(f"step {done}: forward, backward and update")
        skipped = _step(recipe, world, engine, beside, meter, window, throughput, step, micro_batches)
        if skipped:
            monitor.message(skipped)
        monitor.advance()
        hang.enter(f"step {done}: log, validation and checkpoint")
        if done % run.log_every == 0 or done == stop:
            metrics = {"learning_rate": float(engine.get_lr()[0]), **beside.guard.metrics}
            metrics |= {**throughput.read(), **objective.extra_metrics(), **stream.metrics()}
            summary = " ".join(filter(None, (objective.summary(), stream.summary())))
            monitor.log(done, meter.read(done), metrics, summary)
            monitor.warn(done, objective.alarms())
        if validation is not None and validation.is_due(done, run.steps):
            validated = validation.losses(engine)
            monitor.log_validation(done, validated, validation.draw(engine, done))
        if done == stop or (run.save_every and done % run.save_every == 0):
            meter.check(done)
            # Few steps since the last one, as when a signal came, make no fair comparison.
            judged = None if request.stopping else window.read()
            if validated:
                judged = JudgedBy(sum(validated.values()) / len(validated), "validation")
            checkpoints.save(engine, done, beside.state_dict(), judged)
        if done == stop:
            break
    monitor.close()
    return max(start, stop)


def _step(
    recipe: Recipe,
    world: World,
    engine: Any,
    beside: BesideEngine,
    meter: LossMeter,
    window: LossWindow,
    throughput: Throughput,
    step: int,
    micro_batches: list[StreamBatch],
) -> str | None:
    """One optimizer step over its micro-batches; a line on why it was skipped, or None."""
    objective, guard = beside.objective, beside.guard
    taken = [(_to(one.inputs, world.device), one.source_ids) for one in micro_batches]
    counts = global_counts(objective, [batch for batch, _ in taken], world)
    autocast = recipe.run.precision == "bf16_autocast"
    losses: list[torch.Tensor] = []
    parts: list[tuple[dict[str, LossTerm], SourceSums]] = []
    for number, (batch, source_ids) in enumerate(taken):
        _seed_micro_batch(recipe.seed, world.rank, step, number)
        throughput.add(objective.work(batch))
        with torch.autocast(world.device.type, torch.bfloat16, enabled=autocast):
            terms = engine(**batch)
        loss = _loss(terms, counts, world.size * len(taken))
        by_source = objective.source_sums(batch, source_ids, len(recipe.data.sources))
        losses.append(loss.detach())
        parts.append(({name: LossTerm(term.total.detach()) for name, term in terms.items()}, by_source))
        engine.backward(loss)
        guard.step(losses, last=number + 1 == len(taken))
    skipped = guard.accepted(step + 1, [one.record_ids for one in micro_batches], losses)
    if skipped is not None:
        objective.after_skipped_step()
    else:
        beside.after_step(step)
        meter.add_counts(counts)
        for part in parts:
            meter.add(*part)
        for loss in losses:
            window.add(loss, world.size * len(taken))
        window.end_step()
    return skipped


def _initialise_engine(recipe: Recipe, world: World, objective: Objective) -> tuple[Any, GroupSettings]:
    import deepspeed

    objective.to(world.device)
    optimizer = build_optimizer(objective, recipe.optimizer)
    settings = GroupSettings(optimizer)
    scheduler = build_scheduler(optimizer, recipe.run.steps, recipe.schedule)
    engine, *_ = deepspeed.initialize(
        model=objective,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        config=deepspeed_config(recipe, world.size),
    )
    read_strictly(engine)
    return engine, settings


def _loss(terms: dict[str, LossTerm], counts: dict[str, float], divisor: int) -> torch.Tensor:
    """Σ weight · total / global count, times what DeepSpeed will divide by (ranks and accumulation)."""
    shares = [term.total * (term.weight * divisor / max(counts[name], 1.0)) for name, term in terms.items()]
    return torch.stack(shares).sum()


def _seed_micro_batch(seed: int, rank: int, step: int, number: int) -> None:
    state = np.random.SeedSequence((seed, rank, step, number)).generate_state(2, np.uint32)
    torch.manual_seed(int(state[0]) << 32 | int(state[1]))


def _to(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()
    }


def _export(objective: Objective, folder: Path, recipe: Recipe, checkpoint: Path) -> None:
    """Write the trained model in its public format, whole or not at all."""
    try:
        if recipe.run.zero_stage == 3:  # no process holds whole weights; the last checkpoint's files do
            export_checkpoint(checkpoint, recipe, folder)
            return
        objective.eval()
        with atomic_folder(folder) as temporary:
            objective.export(temporary, EXPORT_DTYPES[recipe.run.export_dtype])
            save_resolved(recipe, temporary / "recipe.yaml")
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The training is done, as {checkpoint.name} holds it, but the model could not be written to "
            f"{shown(str(folder))} ({shown(first_line(error))}): make room and start the run again, which "
            "then only writes the model"
        ) from error
