"""The unified model at the size of Qwen2.5-0.5B with 27 x 27 positions, on a CPU, with random weights.

`encode`: an image of 384 px through a tokenizer of So400M's shape; `generate`: one image; `train`: three
steps of the recipe pretrain_qwen2.5_0.5b on packed rows in bf16, at ZeRO 2 and 3. For each the seconds and
the peak of memory; for training also the losses, which must agree between the stages, and the peak that
`dualtoken train --estimate` computes for one GPU. Every part has a process of its own. `--layers` and
`--pack-length` make it fit a smaller machine; the vocabulary, the heads and the grid stay.

Examples:
  python benchmarks/real_size.py --size full                       # 16 GB, half an hour
  python benchmarks/real_size.py --layers 8 --pack-length 1024 --only train
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from encoder import SO400M
from measure import peak_of, report
from train_setup import (
    HALF_A_BILLION,
    NANO,
    make_records,
    make_trainer,
    packed,
    write_llm,
    write_visual_tokenizer,
)

from dualtoken.data_pipelines.stream.loader import StreamBatch
from dualtoken.mllm import DualTokenForConditionalGeneration, DualTokenProcessor
from dualtoken.tokenizer import DecoderConfig, DualTokenizer, DualTokenizerConfig, QuantizerConfig
from dualtoken.train.backend.distributed import join_world, leave_world
from dualtoken.train.callbacks.base import Callback, TrainState
from dualtoken.train.callbacks.losses import LossMetrics
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import Recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.planning.estimate import Estimate
from dualtoken.train.trainer import weights_at_start

RECIPE, STEPS, SEED = "pretrain_qwen2.5_0.5b", 3, 0
#: Layers of the language model and tokens of a row.
SIZES = {"small": (4, 1024), "full": (24, 4096)}
PARTS = ("encode", "generate", "train-2", "train-3")


def recipe_for(folder: Path, stage: int, pack_length: int) -> Recipe:
    """The shipped recipe with the folder's random language model and codebooks, one row a step."""
    values = {
        "output": folder / "run",
        "mllm.llm": folder / "llm",
        "mllm.visual_tokenizer": folder / "codebooks",
        "mllm.text_tokenizer": NANO,
        "data.micro_batch_size": 1,
        "data.pack_length": pack_length,
        "run.gradient_accumulation_steps": 1,
        "run.zero_stage": stage,
        "run.log_every": 1,
        "validation.prompts": "[]",
    }
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    return parse_recipe([RECIPE, *words])


class Rows:
    """A stream of packed rows, the same at every stage."""

    def __init__(self, objective: Any, pack_length: int) -> None:
        self.size = replace(HALF_A_BILLION, pack_length=pack_length, rows=1, longest_chat=100)
        examples = [objective.prepare(record, n) for n, record in enumerate(make_records(self.size))]
        self.examples = [one for one in examples if len(one.input_ids) <= pack_length]

    def run(self, objective: Any, start: int) -> Iterator[StreamBatch]:
        for batch in packed(objective, self.examples, self.size)[start:]:
            yield StreamBatch(batch, [], torch.zeros_like(batch["input_ids"]))

    batches = run


class Losses(Callback):
    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_metrics(self, state: TrainState, metrics: dict[str, float]) -> None:
        self.steps.append({k: v for k, v in metrics.items() if k.startswith("loss/") and k.count("/") == 1})


def train(folder: Path, stage: int, pack_length: int) -> Callable[[], dict[str, Any]]:
    """Three steps, from building the model to the last update."""
    recipe = recipe_for(folder, stage, pack_length)

    def run() -> dict[str, Any]:
        world, losses = join_world(), Losses()
        torch.manual_seed(SEED)
        objective = build_objective(recipe, weights_at_start(recipe, world))
        objective.set_attention(recipe.run.attention)
        if recipe.run.gradient_checkpointing:
            objective.enable_gradient_checkpointing()
        rows = Rows(objective, pack_length)
        trainer = make_trainer(recipe, world, objective, rows, STEPS)
        trainer.callbacks = [LossMetrics(["mixture"]), losses]
        trainer.fit()
        leave_world()
        estimated = Estimate.of(recipe).memory(stage, recipe.run.offload, world.size)
        return {"losses": losses.steps, "estimated": round(estimated.total / 1e9, 3)}

    return run


def so400m() -> DualTokenizer:
    """A tokenizer of so400m_384_rvq8's shape."""
    book = QuantizerConfig(num_codes=16384, code_dim=32, depth=8, shared_codebook=True)
    text = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = DualTokenizerConfig(
        vision_config={**SO400M, "image_size": 384, "patch_size": 14},
        text_config={**text, "vocab_size": 8, "max_position_embeddings": 8},
        pixel_quantizer=book,
        semantic_quantizer=book,
        decoder=DecoderConfig(24, in_channels=1152),
    )
    return DualTokenizer(config).eval()


def encode(folder: Path, stage: int, pack_length: int) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        torch.manual_seed(SEED)
        codes = so400m().encode(torch.rand(1, 3, 384, 384) * 2 - 1)
        return {"codes": list(codes.pixel.shape)}

    return run


def generate(folder: Path, stage: int, pack_length: int) -> Callable[[], dict[str, Any]]:
    def run() -> dict[str, Any]:
        torch.manual_seed(SEED)
        model = DualTokenForConditionalGeneration.from_llm(
            str(folder / "llm"), folder / "codebooks", NANO, load_visual_tokenizer=False
        )
        processor = DualTokenProcessor.from_pretrained(NANO)
        prompt = [{"role": "user", "content": [{"type": "text", "text": "a red circle"}]}]
        inputs = processor.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        codes = model.bfloat16().eval().generate(**inputs, generation_mode="image")
        return {"codes": list(codes.shape)}

    return run


def measured(part: str, folder: Path, pack_length: int) -> dict[str, Any]:
    """One part in this process: its result, seconds, and peak of memory above what Python itself takes."""
    name, _, stage = part.partition("-")
    build = {"encode": encode, "generate": generate, "train": train}[name]
    start = time.perf_counter()
    result, peak = peak_of(build(folder, int(stage or 0), pack_length))
    return {"name": part, "seconds": round(time.perf_counter() - start, 1), "peak": peak / 1e9, **result}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="small", help="full: the recipe's own")
    parser.add_argument("--layers", type=int, help="layers of the language model, instead of the size's")
    parser.add_argument("--pack-length", type=int, help="tokens of a row, instead of the size's")
    parser.add_argument("--only", default="", help="parts that begin with this: encode, generate, train")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    layers, pack_length = SIZES[args.size]
    layers, pack_length = args.layers or layers, args.pack_length or pack_length
    if args.part:
        print(json.dumps(measured(args.part, Path(args.folder), pack_length)))
        return
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_llm(folder / "llm", layers)
        write_visual_tokenizer(folder / "codebooks", HALF_A_BILLION)
        for part in (part for part in PARTS if part.startswith(args.only)):
            command = [sys.executable, __file__, "--part", part, "--folder", name]
            command += ["--pack-length", str(pack_length)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            cases.append(json.loads(done.stdout.splitlines()[-1]))
            print(json.dumps(cases[-1]), flush=True)
    report("real_size", cases, layers=layers, pack_length=pack_length)


if __name__ == "__main__":
    main()
