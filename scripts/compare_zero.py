"""Train the same tiny model at every ZeRO stage, with and without offloading, and compare the losses.

Two processes on the CPU, micro-batches of one record (an image to generate, a question or plain text), so
that every head sometimes has no target on one rank or both. Prints the table of
docs/howto/train_on_a_cluster.md.

Example:
  python -m dualtoken.scripts.compare_zero --steps 50
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from . import cli
from .options import integer

#: (ZeRO stage, what is offloaded) of each run.
SETTINGS = (
    (0, "none"),
    (1, "none"),
    (2, "none"),
    (3, "none"),
    (2, "optimizer"),
    (3, "optimizer"),
    (3, "all"),
)
LLM = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
HEADS = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=integer(1, 100_000), default=50, help="of each run (default: 50)")


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(Path(folder), args.steps)
        logs = {setting: train(recipe, Path(folder), *setting) for setting in SETTINGS}
    print(table(logs, args.steps))
    return 0


def make_recipe(folder: Path, steps: int) -> Path:
    """Make the data and the recipe of the runs; returns the recipe's path."""
    from ..data_pipelines.codes.code_cache import tokenize_shards
    from ..data_pipelines.convert.driver import write_shards
    from ..data_pipelines.convert.samples import OutputOptions
    from ..data_pipelines.records import Record, assistant, user
    from ..data_pipelines.scenes.convert import SceneConverter, SceneOptions
    from ..data_pipelines.shards.writer import ShardWriter
    from ..mllm.assembly.model_folder import resolve_model
    from ..tokenizer import DualTokenizer

    nano = Path(resolve_model("nano"))
    visual = DualTokenizer.from_pretrained(nano / "visual_tokenizer").eval()
    for task in ("t2i", "vqa"):
        options = SceneOptions(count=32, image_size=64, task=task)
        write_shards(SceneConverter(options), OutputOptions(folder / task, progress=False))
        tokenize_shards(visual, folder / task, folder / f"codes_{task}", progress=False)
    with ShardWriter(folder / "chat", source="synthetic", licence="MIT") as writer:
        for number in range(8):
            writer.write(Record(f"chat-{number}", [user(f"Say {number}."), assistant(str(number))]))
    sources = {"t2i": "codes_t2i", "vqa": "codes_vqa", "chat": "chat"}
    recipe = {
        "output": "",
        "mllm": {
            "llm": LLM,
            "visual_tokenizer": str(nano / "visual_tokenizer"),
            "text_tokenizer": str(nano),
            "model": {"depth_transformer": HEADS, "visual_target_fraction": 0.5},
        },
        "data": {
            "micro_batch_size": 1,
            "sources": {name: {"path": str(folder / path)} for name, path in sources.items()},
        },
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 5},
        "run": {"steps": steps, "log_every": 1, "save_every": 0, "threads": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def train(recipe: Path, folder: Path, stage: int, offload: str) -> list[dict[str, float]]:
    """One run of two processes; its log, a dict for each step."""
    output = folder / f"zero{stage}-{offload}"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, "-m", "dualtoken.scripts.train", str(recipe)]
    options = ["--output", str(output), "--run.zero_stage", str(stage), "--run.offload", offload]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    finished = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(f"ZeRO {stage}, offload {offload}: {finished.stderr[-2000:]}")
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def table(logs: dict[tuple[int, str], list[dict[str, float]]], steps: int) -> str:
    """Markdown: losses of the last steps, and the largest difference from stage 0 over all steps."""
    names = ("loss/text", "loss/pixel", "loss/semantic")
    reference = logs[0, "none"]
    lines = [
        "| setting | text, last 10 | pixel, last 10 | semantic, last 10 | largest difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (stage, offload), log in logs.items():
        difference = max(
            abs(one[name] - other[name]) for one, other in zip(log, reference, strict=True) for name in names
        )
        means = []
        for name in names:
            values = [line[name] for line in log[-10:] if line[name]]  # 0: no target in that step
            means.append(f"{sum(values) / max(len(values), 1):.6f}")
        label = f"ZeRO {stage}" + ("" if offload == "none" else f", {offload} offloaded")
        lines.append(f"| {label} | {' | '.join(means)} | {difference:.1e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_main(__spec__)
