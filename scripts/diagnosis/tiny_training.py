"""A training run of a tiny unified model on mixed records, in several processes, for comparisons.

The records are images to generate, questions about images, and plain text, in micro-batches of one, so that
every head sometimes has no target on one rank or on all.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from .processes import kill, launch, start

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
LOSSES = ("loss/text", "loss/pixel", "loss/semantic")
PATIENCE = 1800  # seconds, of one run

Log = list[dict[str, float]]


def write_recipe(folder: Path, steps: int) -> Path:
    """Make the data and the recipe of the runs in `folder`; returns the recipe's path."""
    from ...data_pipelines.codes.code_cache import tokenize_shards
    from ...data_pipelines.convert.driver import write_shards
    from ...data_pipelines.convert.samples import OutputOptions
    from ...data_pipelines.records import Record, assistant, user
    from ...data_pipelines.scenes.convert import SceneConverter, SceneOptions
    from ...data_pipelines.shards.writer import ShardWriter
    from ...mllm.assembly.model_folder import resolve_model
    from ...tokenizer import DualTokenizer

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


def run_training(recipe: Path, output: Path, processes: int, gpus: bool, options: Sequence[str] = ()) -> Log:
    """One run; its log, a dict for each step. RuntimeError, with the last line of stderr, if it fails."""
    words = ["dualtoken.scripts.train", str(recipe), "--output", str(output), *options]
    done = launch(words, processes, PATIENCE, gpus)
    log = output / "log.jsonl"
    # A process may abort at the interpreter's exit after all was done: the log decides.
    if done is None or (done.returncode and not (output / "model").is_dir()):
        raise RuntimeError(f"{' '.join(options) or 'the run'}: {_reason(done)}")
    return [json.loads(line) for line in log.read_text().splitlines()]


def kill_training(
    recipe: Path, output: Path, processes: int, gpus: bool, options: Sequence[str], after: int
) -> None:
    """Start a run and kill it once its log holds `after` steps. RuntimeError if it ends before."""
    words = ["dualtoken.scripts.train", str(recipe), "--output", str(output), *options]
    process, log = start(words, processes, gpus), output / "log.jsonl"
    deadline = time.monotonic() + PATIENCE
    try:
        while not (log.exists() and log.read_text().count("\n") >= after):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the run to be killed ended before step {after}")
            time.sleep(0.05)
    finally:
        kill(process)


def largest_difference(log: Log, reference: Log) -> float:
    """The largest difference of any loss at any step of two runs of equal length."""
    pairs = zip(log, reference, strict=True)
    return max(abs(one[name] - other[name]) for one, other in pairs for name in LOSSES)


def _reason(done: subprocess.CompletedProcess[str] | None) -> str:
    if done is None:
        return f"not finished after {PATIENCE} s"
    lines = [line for line in done.stderr.strip().splitlines() if "Error" in line]
    return lines[0] if lines else f"exit status {done.returncode}"
