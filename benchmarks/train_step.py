"""A training step of the unified model, as in `dualtoken train`, against a straightforward implementation.

Forward, backward and optimizer step on the same mixed records (questions about images, captions, image
generation, plain text) from the same weights. `dualtoken`: packed rows, cross-entropy in chunks and at
targets only, fused AdamW. `plain`: padded batches in random order; the text logits of all positions and the
logits of all codes in memory at once; torch's default AdamW. Both see the same real tokens, so `speed`
compares real tokens per second. A second case compares the trainer's step (with DeepSpeed's engine, guards
and metrics) with the bare one.

Examples:
  python benchmarks/train_step.py
  python benchmarks/train_step.py --size full   # 0.5 B parameters, 27 x 27 positions, depth 8: for a GPU
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import argument_parser, compare, costs, default_device, report, timed_in_turns
from torch import Tensor
from torch.nn import functional
from train_setup import (
    BETAS,
    CLIPPING,
    LEARNING_RATE,
    SIZES,
    Size,
    make_objective,
    make_recipe,
    make_records,
    make_trainer,
    packed,
    prepared,
    write_visual_tokenizer,
)

from dualtoken.data_pipelines.stream.loader import StreamBatch
from dualtoken.mllm import DualTokenForConditionalGeneration
from dualtoken.tokenizer import VisualCodes
from dualtoken.train.backend.distributed import World, join_world, leave_world
from dualtoken.train.callbacks.base import Callback, TrainState
from dualtoken.train.callbacks.losses import LossMetrics
from dualtoken.train.callbacks.step_guard import StepGuard
from dualtoken.train.callbacks.throughput import Throughput
from dualtoken.train.objectives.base import to_device
from dualtoken.train.objectives.mllm import MllmObjective
from dualtoken.train.optimizers import build_optimizer

Losses = dict[str, float]
Step = Callable[[], Losses]


# --- the steps ----------------------------------------


def autocast(size: Size, device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=size.precision == "bf16_autocast")


def build_bare(size: Size, folder: Path) -> Step:
    """The step without the trainer: objective, packing and optimizer."""
    recipe, device = make_recipe(size, folder), default_device()
    objective = make_objective(recipe, size, device)
    optimizer = build_optimizer(objective, recipe.optimizer)
    examples = prepared(objective, size)

    def losses(batch: dict[str, Any]) -> dict[str, Tensor]:
        with autocast(size, device):
            return {name: term.total for name, term in objective(**to_device(batch, device)).items()}

    return lambda: update(objective, optimizer, packed(objective, examples, size), losses)


def build_plain(size: Size, folder: Path) -> Step:
    """The straightforward step."""
    recipe, device = make_recipe(size, folder), default_device()
    objective = make_objective(recipe, size, device)
    model, examples = objective.model, prepared(objective, size)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, BETAS, weight_decay=0.0)
    starts = range(0, len(examples), size.padded)

    def losses(batch: dict[str, Any]) -> dict[str, Tensor]:
        with autocast(size, device):
            return plain_losses(model, **to_device(batch, device))

    def step() -> Losses:
        batches = [objective.collate(examples[start : start + size.padded]) for start in starts]
        return update(objective, optimizer, batches, losses)

    return step


def update(
    objective: MllmObjective,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[dict[str, Any]],
    losses_of: Callable[[dict[str, Any]], dict[str, Tensor]],
) -> Losses:
    """One optimizer step on the means of summed losses over all batches; returns the means."""
    counted = [objective.target_counts(batch) for batch in batches]
    counts = {name: sum(counts[name] for counts in counted) for name in counted[0]}
    sums: dict[str, Any] = dict.fromkeys(counts, 0.0)
    for batch in batches:
        losses = losses_of(batch)
        torch.stack([loss / counts[name] for name, loss in losses.items()]).sum().backward()
        sums = {name: total + losses[name].detach() for name, total in sums.items()}
    torch.nn.utils.clip_grad_norm_(objective.parameters(), CLIPPING)
    optimizer.step()
    optimizer.zero_grad()
    return {name: float(total) / counts[name] for name, total in sums.items()}


def plain_losses(
    model: DualTokenForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    pixel_codes: Tensor | None = None,
    semantic_codes: Tensor | None = None,
    **_: Any,
) -> dict[str, Tensor]:
    """Summed losses with all logits in memory; depth transformers run at targets only, as in `dualtoken`."""
    image, codes = model.config.image_token_id, None
    if pixel_codes is not None and semantic_codes is not None:
        codes = VisualCodes(pixel_codes, semantic_codes)
    states = model.language_model.base_model(
        inputs_embeds=model.embed_sequence(input_ids, codes), attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    logits, following = model.text_logits(states)[:, :-1].float(), labels[:, 1:]
    text = following.masked_fill(following.eq(image), -100)
    losses = {"text": functional.cross_entropy(logits.flatten(0, 1), text.flatten(), reduction="sum")}
    if codes is None:
        return losses
    targets_of, at = labels[input_ids.eq(image)].eq(image), states[:, :-1][following.eq(image)]
    for name, branch in model.branches.items():
        head = branch.depth_transformer
        targets = getattr(codes, name).flatten(0, 1)[targets_of]
        outputs = head(at, targets, branch.codebook)
        every = torch.stack([head.classify(outputs[:, d], d) for d in range(head.depth)], dim=1).float()
        losses[name] = functional.cross_entropy(every.flatten(0, 1), targets.flatten(), reduction="sum")
        losses[name] = losses[name] / head.depth
    return losses


class PackedRecords:
    """A stream with the same packed rows at every step."""

    def __init__(self, objective: MllmObjective, size: Size) -> None:
        self.size, self.examples = size, prepared(objective, size)

    def run(self, objective: MllmObjective, start: int) -> Iterator[StreamBatch]:
        for batch in packed(objective, self.examples, self.size):
            yield StreamBatch(batch, [], torch.zeros_like(batch["input_ids"]))

    batches = run


class LastMetrics(Callback):
    """Keeps the metrics of the last log line."""

    def on_metrics(self, state: TrainState, metrics: dict[str, float]) -> None:
        self.metrics = metrics


def build_trainer(size: Size, folder: Path, world: World) -> Step:
    """The trainer's step, on the same packed rows."""
    recipe = make_recipe(size, folder)
    objective = make_objective(recipe, size, world.device)
    stream = PackedRecords(objective, size)
    accumulation = len(list(stream.run(objective, 0)))
    recipe = replace(recipe, run=replace(recipe.run, gradient_accumulation_steps=accumulation, log_every=1))
    trainer = make_trainer(recipe, world, objective, stream)
    last = LastMetrics()
    guard = StepGuard(trainer.engine, folder, spike_factor=10.0, max_skipped=1)
    trainer.callbacks = [guard, LossMetrics(["mixture"]), Throughput(world), last]

    def step() -> Losses:
        trainer.last_step += 1
        trainer.fit()
        losses = {name: n for name, n in last.metrics.items() if name.startswith("loss/")}
        return {name.removeprefix("loss/"): n for name, n in losses.items() if name.count("/") == 1}

    return step


# --- report ----------------------------------------


def data_metrics(size: Size, folder: Path, seconds: float) -> dict[str, float]:
    """Real tokens of a step, fill of packed rows and padded batches, and the share of time for the data.

    The data's time is for templates, text tokens, packing and collation in the training process; in a run
    loader workers do most of it in parallel to the step.
    """
    objective = make_objective(make_recipe(size, folder), size, "cpu")
    records = make_records(size)
    start = time.perf_counter()
    examples = [objective.prepare(record, draw) for draw, record in enumerate(records)]
    rows = packed(objective, examples, size)
    waiting = time.perf_counter() - start
    lengths = [len(example.input_ids) for example in examples]
    batches = [lengths[start : start + size.padded] for start in range(0, len(lengths), size.padded)]
    positions = sum(batch["input_ids"].numel() for batch in rows)
    return {
        "tokens": sum(lengths),
        "tokens_per_second": round(sum(lengths) / seconds, 1),
        "fill_share": round(sum(lengths) / positions, 4),
        "plain_fill_share": round(sum(lengths) / sum(len(batch) * max(batch) for batch in batches), 4),
        "data_share": round(waiting / (waiting + seconds), 4),
    }


def against_plain(size: Size, folder: Path, repeats: int) -> list[dict[str, Any]]:
    kinds = {"dualtoken": build_bare, "plain": build_plain}
    measured = costs({kind: partial(build, size, folder) for kind, build in kinds.items()}, repeats)
    return compare(f"{size.name}, {size.records} mixed records", "dualtoken", measured)


def trainer_against_bare(size: Size, folder: Path, repeats: int) -> dict[str, Any]:
    """Speed only: on a CPU the trainer makes the C library keep freed memory."""
    steps = {"trainer": build_trainer(size, folder, join_world()), "bare": build_bare(size, folder)}
    seconds = timed_in_turns(steps, repeats)
    leave_world()
    return {
        "name": f"{size.name}, the trainer's step with DeepSpeed",
        "against": "bare loop",
        "speed": round(seconds["bare"] / seconds["trainer"], 3),
        "memory": None,
        "seconds": round(seconds["trainer"], 4),
    }


def main() -> None:
    args = argument_parser(__doc__, SIZES, "steps", repeats=2).parse_args()
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, size in enumerate(SIZES[args.size]):
            folder = Path(temporary) / str(number)
            write_visual_tokenizer(folder, size)
            cases += against_plain(size, folder, args.repeats)
        first, folder = SIZES[args.size][0], Path(temporary) / "0"
        data = data_metrics(first, folder, cases[0]["seconds"])
        cases.append(trainer_against_bare(first, folder, args.repeats))
    report("train_step", cases, data=data)


if __name__ == "__main__":
    main()
