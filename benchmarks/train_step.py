"""A training step of the unified model: as `dualtoken train` does it against the one that one writes first.

Forward, backward and optimizer step on the same mixed records (questions about images, captions, drawings,
plain text) from the same weights. Ours: packed rows, cross-entropy in chunks and at targets only, fused
AdamW. `plain`: batches in random order, padded; the text logits of every place and the logits of every code
held at once; torch's default AdamW. Both see the same real tokens, so `speed` is that of real tokens per
second. A second case is the trainer's own step (DeepSpeed's engine, guards, figures) against the bare one.

Examples:
  python benchmarks/train_step.py
  python benchmarks/train_step.py --size full   # 0.5 B parameters, 27 x 27 positions, depth 8: for a GPU
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from conversations import WEIGHTS, conversation, made_up_codes
from measure import compare, costs, repeats, report, timed_in_turns
from torch import Tensor
from torch.nn import functional

from dualtoken.data_pipelines.records import Record
from dualtoken.data_pipelines.stream.loader import StreamBatch
from dualtoken.data_pipelines.stream.packing import shuffled_rows
from dualtoken.mllm import DualTokenForConditionalGeneration
from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig, VisualCodes
from dualtoken.train import trainer
from dualtoken.train.backend.distributed import World, join_world, leave_world
from dualtoken.train.callbacks.loss_meter import LossMeter
from dualtoken.train.callbacks.loss_window import LossWindow
from dualtoken.train.callbacks.step_guard import StepGuard
from dualtoken.train.callbacks.throughput import Throughput
from dualtoken.train.config.data import DataConfig, SourceConfig
from dualtoken.train.config.mllm import MllmObjectiveConfig
from dualtoken.train.config.optimizer import OptimizerConfig
from dualtoken.train.config.recipe import Recipe
from dualtoken.train.config.run import RunConfig
from dualtoken.train.config.schedule import ScheduleConfig
from dualtoken.train.objectives import build_objective
from dualtoken.train.objectives.mllm import MllmObjective
from dualtoken.train.optimizers import build_optimizer

NANO = Path(__file__).resolve().parents[1] / "pretrained" / "nano"
LEARNING_RATE, BETAS, CLIPPING = 1e-4, (0.9, 0.95), 1.0

Losses = dict[str, float]
Step = Callable[[], Losses]


@dataclass(frozen=True)
class Size:
    """Shapes of a model, the records of one step, and how a micro-batch is made of them.

    `rows` packed rows of `pack_length` tokens are a micro-batch of ours, `padded` records one of the plain
    step: about as many real tokens.
    """

    name: str
    llm: dict[str, Any]
    heads: dict[str, int]
    codebook: dict[str, Any]
    vocabulary: int
    side: int
    records: int
    longest_chat: int
    pack_length: int
    rows: int
    padded: int
    precision: str


NANO_SHAPE = Size(  # of the model that comes with the package
    name="nano",
    llm={"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 512},
    heads={"hidden_size": 128, "num_layers": 3, "num_heads": 4, "intermediate_size": 256},
    codebook={"num_codes": 512, "code_dim": 32, "depth": 4, "shared_codebook": False},
    vocabulary=2048,
    side=8,
    records=48,
    longest_chat=120,
    pack_length=256,
    rows=4,
    padded=8,
    precision="fp32",
)
MANY_CLASSES = replace(
    NANO_SHAPE,
    name="nano with 16,384 words and 4,096 codes",
    codebook={**NANO_SHAPE.codebook, "num_codes": 4096},
    vocabulary=16384,
    records=16,
)
HALF_A_BILLION = Size(
    name="Qwen2.5-0.5B with the codes of so400m_384_rvq8",
    llm={
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
    },
    heads={"hidden_size": 768, "num_layers": 3, "num_heads": 12, "intermediate_size": 3072},
    codebook={"num_codes": 16384, "code_dim": 32, "depth": 8, "shared_codebook": True},
    vocabulary=151936,
    side=27,
    records=64,
    longest_chat=1200,
    pack_length=4096,
    rows=2,
    padded=8,
    precision="bf16_autocast",
)
# The trainer's step is measured with the first of each.
SIZES = {"small": (NANO_SHAPE, MANY_CLASSES), "full": (HALF_A_BILLION,)}


# --- model and records ----------------------------------------


def write_visual_tokenizer(folder: Path, size: Size) -> None:
    """A tokenizer of which training on cached codes reads the codebooks only; its towers are tiny."""
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = DualTokenizerConfig(
        vision_config={**tower, "image_size": 2 * size.side, "patch_size": 2},
        text_config={**tower, "vocab_size": 8, "max_position_embeddings": 8},
        pixel_layer=1,
        shortcut_layer=None,
        semantic_layer=2,
        pixel_quantizer=size.codebook,
        semantic_quantizer=size.codebook,
        decoder={"latent_size": size.side, "in_channels": 32, "ch": 32, "ch_mult": [1, 1]},
    )
    DualTokenizer(config).save_pretrained(folder)


def make_recipe(size: Size, visual_tokenizer: Path) -> Recipe:
    """The run whose steps are measured."""
    return Recipe(
        output="unused",
        data=DataConfig({"mixture": SourceConfig("unused")}, size.rows, pack_length=size.pack_length),
        run=RunConfig(steps=1000, precision=cast(Any, size.precision)),
        optimizer=OptimizerConfig(
            lr=LEARNING_RATE, betas=BETAS, weight_decay=0.0, gradient_clipping=CLIPPING
        ),
        schedule=ScheduleConfig("constant", warmup_steps=0),
        mllm=MllmObjectiveConfig(
            llm={
                "model_type": "llama",
                "max_position_embeddings": size.pack_length,
                "tie_word_embeddings": True,
                **size.llm,
            },
            visual_tokenizer=str(visual_tokenizer),
            text_tokenizer=str(NANO),
            model={"depth_transformer": size.heads, "shared_classifier": size.codebook["shared_codebook"]},
        ),
    )


def make_objective(recipe: Recipe, size: Size, device: str | torch.device) -> MllmObjective:
    """The model, the same weights each time, within what the trainer trains."""
    torch.manual_seed(0)
    objective = cast(MllmObjective, build_objective(recipe))
    objective.set_attention(recipe.run.attention)
    objective.model.language_model.resize_token_embeddings(size.vocabulary, mean_resizing=False)
    return objective.to(device).train()


def make_records(size: Size) -> list[Record]:
    """The records of the step, in random order."""
    rng = np.random.default_rng(0)
    image_of = made_up_codes(size.side, size.codebook["depth"], size.codebook["num_codes"])
    kinds = [kind for kind, share in WEIGHTS.items() for _ in range(round(share * size.records))]
    records = [
        Record(f"{number}", conversation(kind, rng, image_of, size.longest_chat))
        for number, kind in enumerate(kinds)
    ]
    return [records[number] for number in rng.permutation(len(records))]


def packed(objective: Any, examples: Sequence[Any], size: Size) -> list[dict[str, Any]]:
    """Micro-batches of packed rows."""
    rows = shuffled_rows([len(one.input_ids) for one in examples], size.pack_length, seed=0, window=0)
    filled = [[examples[number] for number in row] for row in rows]
    return [
        objective.collate_packed(filled[start : start + size.rows], size.pack_length)
        for start in range(0, len(filled), size.rows)
    ]


def prepared(objective: Any, size: Size) -> list[Any]:
    return [objective.prepare(record, draw) for draw, record in enumerate(make_records(size))]


# --- the steps ----------------------------------------


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def to_device(batch: dict[str, Any], device: str | torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def autocast(size: Size, device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=size.precision == "bf16_autocast")


def build_bare(size: Size, folder: Path) -> Step:
    """Our step without the trainer: its objective, its packing, its optimizer."""
    recipe, device = make_recipe(size, folder), default_device()
    objective = make_objective(recipe, size, device)
    optimizer = build_optimizer(objective, recipe.optimizer)
    examples = prepared(objective, size)

    def step() -> Losses:
        batches = packed(objective, examples, size)
        counts = total_counts(objective, batches)
        sums: dict[str, Any] = dict.fromkeys(counts, 0.0)
        for batch in batches:
            with autocast(size, device):
                terms = objective(**to_device(batch, device))
            torch.stack([t.total * t.weight / counts[name] for name, t in terms.items()]).sum().backward()
            sums = {name: total + terms[name].total.detach() for name, total in sums.items()}
        torch.nn.utils.clip_grad_norm_(objective.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        return {name: float(total) / counts[name] for name, total in sums.items()}

    return step


def build_plain(size: Size, folder: Path) -> Step:
    """The step as one writes it first."""
    recipe, device = make_recipe(size, folder), default_device()
    objective = make_objective(recipe, size, device)
    model, examples = objective.model, prepared(objective, size)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, BETAS, weight_decay=0.0)

    def step() -> Losses:
        starts = range(0, len(examples), size.padded)
        batches = [objective.collate(examples[start : start + size.padded]) for start in starts]
        counts = total_counts(objective, batches)
        sums: dict[str, Any] = dict.fromkeys(counts, 0.0)
        for batch in batches:
            with autocast(size, device):
                losses = plain_losses(model, **to_device(batch, device))
            torch.stack([loss / counts[name] for name, loss in losses.items()]).sum().backward()
            sums = {name: total + losses[name].detach() for name, total in sums.items()}
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIPPING)
        optimizer.step()
        optimizer.zero_grad()
        return {name: float(total) / counts[name] for name, total in sums.items()}

    return step


def plain_losses(
    model: DualTokenForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    pixel_codes: Tensor | None = None,
    semantic_codes: Tensor | None = None,
) -> dict[str, Tensor]:
    """Summed losses with all logits held; the depth transformers run at targets only, like ours."""
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
    drawn, at = labels[input_ids.eq(image)].eq(image), states[:, :-1][following.eq(image)]
    for name, head, codebook in (
        ("pixel", model.pixel_head, model.pixel_codebook),
        ("semantic", model.semantic_head, model.semantic_codebook),
    ):
        assert head is not None  # neither branch is left out
        targets = getattr(codes, name).flatten(0, 1)[drawn]
        outputs = head(at, targets, codebook)
        every = torch.stack([head.classify(outputs[:, d], d) for d in range(head.depth)], dim=1).float()
        losses[name] = functional.cross_entropy(every.flatten(0, 1), targets.flatten(), reduction="sum")
        losses[name] = losses[name] / head.depth
    return losses


def total_counts(objective: MllmObjective, batches: Sequence[dict[str, Any]]) -> Losses:
    counted = [objective.target_counts(batch) for batch in batches]
    return {name: sum(counts[name] for counts in counted) for name in counted[0]}


def build_trainer(size: Size, folder: Path, world: World) -> Step:
    """The trainer's own step, on the same packed rows."""
    recipe = make_recipe(size, folder)
    objective = make_objective(recipe, size, world.device)
    examples = prepared(objective, size)
    accumulation = len(packed(objective, examples, size))
    source_ids = torch.zeros(size.rows, size.pack_length, dtype=torch.long)
    recipe = replace(recipe, run=replace(recipe.run, gradient_accumulation_steps=accumulation))
    engine, _ = trainer._initialise_engine(recipe, world, objective)
    guard = StepGuard(engine, engine.basic_optimizer, world, folder, spike_factor=10.0, max_skipped=1)
    beside = trainer.BesideEngine(objective, None, cast(Any, None), guard)
    meter, window, throughput = LossMeter(world, ["mixture"]), LossWindow(world), Throughput(world)
    engine.train()

    def step() -> Losses:
        batches = [
            StreamBatch(batch, [], source_ids[: len(batch["input_ids"])])
            for batch in packed(objective, examples, size)
        ]
        skipped = trainer._step(recipe, world, engine, beside, meter, window, throughput, 0, batches)
        assert skipped is None, skipped
        throughput.read()
        return {name: mean for name, mean in meter.read(1).items() if "/" not in name}

    return step


# --- what is reported ----------------------------------------


def figures(size: Size, folder: Path, seconds: float) -> dict[str, float]:
    """Real tokens a step, what packing and padding fill, and the share of a step that its data takes.

    That share is of templates, text tokens, packing and collating in the training process itself; loader
    workers do most of it beside the step.
    """
    objective = make_objective(make_recipe(size, folder), size, "cpu")
    records = make_records(size)
    start = time.perf_counter()
    examples = [objective.prepare(record, draw) for draw, record in enumerate(records)]
    rows = packed(objective, examples, size)
    waiting = time.perf_counter() - start
    lengths = [len(example.input_ids) for example in examples]
    batches = [lengths[start : start + size.padded] for start in range(0, len(lengths), size.padded)]
    places = sum(batch["input_ids"].numel() for batch in rows)
    return {
        "tokens": sum(lengths),
        "tokens_per_second": round(sum(lengths) / seconds, 1),
        "fill_share": round(sum(lengths) / places, 4),
        "plain_fill_share": round(sum(lengths) / sum(len(batch) * max(batch) for batch in batches), 4),
        "data_share": round(waiting / (waiting + seconds), 4),
    }


def against_plain(size: Size, folder: Path, repeats: int) -> list[dict[str, Any]]:
    kinds = {"dualtoken": build_bare, "plain": build_plain}
    measured = costs({kind: partial(build, size, folder) for kind, build in kinds.items()}, repeats)
    return compare(f"{size.name}, {size.records} mixed records", "dualtoken", measured)


def trainer_against_bare(size: Size, folder: Path, repeats: int) -> dict[str, Any]:
    """Without its memory: on a CPU the trainer has the C library keep what is freed."""
    steps = {"trainer": build_trainer(size, folder, join_world()), "bare": build_bare(size, folder)}
    seconds = timed_in_turns(steps, repeats)
    leave_world()
    speed, own = round(seconds["bare"] / seconds["trainer"], 3), round(seconds["trainer"], 4)
    name = f"{size.name}, the trainer's step with DeepSpeed"
    return {"name": name, "against": "bare loop", "speed": speed, "memory": None, "seconds": own}


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--repeats", type=repeats, default=2, help="timed steps of each (default: 2)")
    args = parser.parse_args()
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, size in enumerate(SIZES[args.size]):
            folder = Path(temporary) / str(number)
            write_visual_tokenizer(folder, size)
            cases += against_plain(size, folder, args.repeats)
        first, folder = SIZES[args.size][0], Path(temporary) / "0"
        data = figures(first, folder, cases[0]["seconds"])
        cases.append(trainer_against_bare(first, folder, args.repeats))
    report("train_step", cases, data=data)


if __name__ == "__main__":
    main()
