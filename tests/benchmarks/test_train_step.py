"""The steps that the training benchmark compares do the same: equal losses before and after an update."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# In a process of its own, as DeepSpeed's engine makes it one of a group of training processes.
SCRIPT = """
import json, sys, tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import train_step as benchmark
from train_setup import NANO_SHAPE

tiny = replace(
    NANO_SHAPE,
    llm={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    heads={"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 32},
    codebook={**NANO_SHAPE.codebook, "num_codes": 16, "code_dim": 8},
    side=4, records=10, longest_chat=30, padded=3, rows=2, pack_length=160,
)
with tempfile.TemporaryDirectory() as temporary:
    folder = Path(temporary)
    benchmark.write_visual_tokenizer(folder, tiny)
    world = benchmark.join_world(threads=1)
    steps = {
        "bare": benchmark.build_bare(tiny, folder),
        "plain": benchmark.build_plain(tiny, folder),
        "trainer": benchmark.build_trainer(tiny, folder, world),
    }
    losses = {name: [step() for _ in range(3)] for name, step in steps.items()}
    metrics = benchmark.data_metrics(tiny, folder, 1.0)
print(json.dumps({"losses": losses, "metrics": metrics}))
"""


@pytest.fixture(scope="module")
def measured() -> dict:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(BENCHMARKS)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_all_steps_learn_the_same(measured: dict):
    losses = measured["losses"]
    for step in range(3):
        for other in ("plain", "trainer"):
            assert losses[other][step] == pytest.approx(losses["bare"][step], rel=1e-4)
    assert set(losses["plain"][0]) == {"text", "pixel", "semantic"}
    assert losses["bare"][2]["text"] < losses["bare"][0]["text"]


def test_data_metrics_are_shares_of_the_same_tokens(measured: dict):
    metrics = measured["metrics"]
    assert metrics["tokens_per_second"] == metrics["tokens"]
    assert 0 < metrics["plain_fill_share"] < 1
    assert 0 < metrics["fill_share"] <= 1
    assert 0 < metrics["data_share"] < 1
