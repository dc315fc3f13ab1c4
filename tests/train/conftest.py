"""A tiny chain of real artefacts: scenes, text tokenizer, SigLIP, dual tokenizer, cached codes. Made once
per session."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from transformers import SiglipConfig, SiglipModel

from dualtoken.data_pipelines.codes.code_cache import tokenize_shards
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.samples import OutputOptions
from dualtoken.data_pipelines.records import Record, assistant, user
from dualtoken.data_pipelines.scenes.convert import SceneConverter, SceneOptions
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.data_pipelines.shards.writer import ShardWriter
from dualtoken.mllm import train_text_tokenizer
from dualtoken.scripts.cli import run_command
from dualtoken.tokenizer import DualTokenizer, DualTokenizerConfig, DualTokenizerImageProcessor
from dualtoken.train.backend.distributed import leave_world

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "projection_size": 32,
}
QUANTIZER = {"num_codes": 16, "code_dim": 8, "depth": 2, "shared_codebook": False, "restart_every": 2}
MODEL = {
    "pixel_layer": 1,
    "shortcut_layer": None,
    "semantic_layer": 2,
    "pixel_quantizer": QUANTIZER,
    "semantic_quantizer": QUANTIZER,
    "decoder": {"latent_size": 4, "in_channels": 32, "ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1},
}


@dataclass(frozen=True)
class Chain:
    """Folders of everything that the three objectives need."""

    folder: Path

    def recipe(self, name: str, output: Path, **changes: Any) -> list[str]:
        """Command-line arguments of a tiny run of one objective."""
        path = output.parent / f"{output.name}.yaml"
        path.write_text(yaml.safe_dump({**_common(output), **_sections(self.folder)[name], **changes}))
        return [str(path)]


def _common(output: Path) -> dict[str, Any]:
    return {
        "output": str(output),
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 2},
        "run": {"steps": 6, "log_every": 1, "save_every": 3, "threads": 1, "zero_stage": 0},
    }


def _sections(folder: Path) -> dict[str, dict[str, Any]]:
    def data(**sources: str) -> dict[str, Any]:
        return {"micro_batch_size": 4, "sources": {k: {"path": str(folder / v)} for k, v in sources.items()}}

    return {
        "contrastive": {
            "contrastive": {
                "vision_config": VISION,
                "text_config": TEXT,
                "text_tokenizer": str(folder / "text"),
                "patch_weight": 1.0,
                "patch_layer": 2,
                "background_weight": 0.2,
                "consistency_weight": 0.3,
                "max_text_length": 16,
            },
            "data": data(scenes="t2i"),
        },
        "tokenizer": {
            "tokenizer": {
                "teacher": str(folder / "siglip"),
                "model": MODEL,
                "l1_weight": 0.5,
                "gradient_weight": 0.5,
                "pixel_consistency_weight": 0.3,
                "semantic_consistency_weight": 0.3,
                "unquantized_steps": 2,
                "initialisation_vectors": 256,
            },
            "data": data(scenes="vqa"),
        },
        "mllm": {
            "mllm": {
                "llm": {
                    "model_type": "llama",
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "tie_word_embeddings": True,
                },
                "visual_tokenizer": str(folder / "tokenizer"),
                "text_tokenizer": str(folder / "text"),
                "model": {
                    "depth_transformer": {
                        "hidden_size": 32,
                        "num_layers": 2,
                        "num_heads": 2,
                        "intermediate_size": 64,
                    },
                    "pixel_condition": "semantic",
                    "visual_target_fraction": 0.5,
                },
                "shuffle_turns": True,
            },
            # Micro-batches of one record: image generation, a question or plain text. Every head is at times
            # without target.
            "data": {
                **data(t2i="codes_t2i", vqa="codes_vqa", chat="chat"),
                "micro_batch_size": 1,
                "sort_window": 2,
            },
        },
    }


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    torch.manual_seed(0)
    for task in ("t2i", "vqa"):
        options = SceneOptions(count=24, image_size=16, task=task)
        write_shards(SceneConverter(options), OutputOptions(folder / task, progress=False))
    with ShardWriter(folder / "chat", source="made for tests", licence="MIT") as writer:
        for number in range(8):
            writer.write(Record(f"chat-{number}", [user(f"Say {number}."), assistant(str(number))]))
    texts = [text for task in ("t2i", "vqa") for text in ShardDataset(folder / task).texts()]
    tokenizer = train_text_tokenizer(texts, 400, folder / "text")
    siglip_text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    siglip = SiglipModel(SiglipConfig(vision_config=VISION, text_config=siglip_text))
    for target in (folder / "siglip",):
        siglip.save_pretrained(target)
        tokenizer.save_pretrained(target)
    config = DualTokenizerConfig(vision_config=VISION, text_config=siglip_text, **MODEL)
    visual = DualTokenizer.from_backbone(siglip, config).eval()
    visual.save_pretrained(folder / "tokenizer")
    DualTokenizerImageProcessor(size=16).save_pretrained(folder / "tokenizer")
    for task in ("t2i", "vqa"):
        tokenize_shards(visual, folder / task, folder / f"codes_{task}", progress=False)
    return Chain(folder)


def run_training(arguments: list[str], processes: int = 1) -> str:
    """What ``dualtoken train`` printed in processes of its own; another status than 0 fails the test."""
    finished = subprocess.run(
        _command(arguments, processes), capture_output=True, text=True, env=_environment(), timeout=400
    )
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    return finished.stdout


def train_here(arguments: list[str]) -> int:
    """The exit status of ``dualtoken train`` in this process, which takes a second; nothing of it stays."""
    environment = dict(os.environ)
    try:
        return run_command("train", arguments)
    finally:
        if torch.distributed.is_initialized():  # a run that failed leaves that to the end of its process
            leave_world()
        os.environ.clear()
        os.environ.update(environment)


def start_training(
    arguments: list[str], processes: int = 1, largest_file: int | None = None
) -> subprocess.Popen[str]:
    """``dualtoken train`` on its way; no process of it may write a file of more than `largest_file` bytes."""

    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead

    return subprocess.Popen(
        _command(arguments, processes),
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
    )


def kill_training(arguments: list[str], log: Path, step: int) -> None:
    """Start a run of two processes and kill them all (SIGKILL) once `log` holds this step."""
    running = subprocess.Popen(
        _command(arguments, processes=2),
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 400
        while not (log.exists() and f'"step": {step},' in log.read_text()):
            assert running.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline, f"step {step} was not reached"
            time.sleep(0.05)
    finally:
        for process in psutil.Process(running.pid).children(recursive=True) if running.poll() is None else []:
            process.kill()
        running.kill()
        running.wait()


def _command(arguments: list[str], processes: int) -> list[str]:
    distributed = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    launcher = distributed if processes > 1 else []
    return [sys.executable, *launcher, "-m", "dualtoken.scripts.train", *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
