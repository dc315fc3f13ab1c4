"""A complete ablation: runs, results, tables; finished runs are not repeated."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.codes.code_cache import tokenize_shards
from dualtoken.data_pipelines.convert.driver import write_shards
from dualtoken.data_pipelines.convert.samples import OutputOptions
from dualtoken.data_pipelines.scenes.convert import SceneConverter, SceneOptions
from dualtoken.scripts.ablation.document import write_document
from dualtoken.scripts.ablation.plan import load_plan
from dualtoken.scripts.ablation.recipes import Folders
from dualtoken.scripts.ablation.runs import Runner
from dualtoken.scripts.ablation.summary import Results
from dualtoken.scripts.cli import run_command
from dualtoken.tokenizer import DualTokenizer
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import save_resolved
from dualtoken.train.objectives import build_objective

from .conftest import MODEL, QUANTIZER, Chain, _environment

RECONSTRUCTION_ONLY = {"tokenizer.semantic_weight": 0.0, "tokenizer.pooled_weight": 0.0}
SHARED = {
    "tokenizer.model": {**MODEL, "shared_quantizer": True, "pixel_layer": 2, "pixel_quantizer": QUANTIZER}
}
TOKENIZERS = {"shared": {**SHARED}, "alone": RECONSTRUCTION_ONLY}


@pytest.fixture(scope="module")
def plan_file(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tokenizers, a model on the codes of a given one, and a model on those of the first."""
    folder = tmp_path_factory.mktemp("plan")
    for name in ("tokenizer", "mllm"):
        chain.recipe(name, folder / name, run={"steps": 2, "log_every": 1, "save_every": 1, "threads": 1})
    variants: dict[str, Any] = {
        name: {"title": name, "base": "tokenizer", "overrides": overrides}
        for name, overrides in TOKENIZERS.items()
    }
    variants["semantic"] = {
        "title": "semantic codes",
        "base": "mllm",
        "overrides": {"mllm.model.visual_branches": "semantic"},
    }
    variants["own"] = {"title": "own codes", "base": "mllm", "tokenizer": "shared"}
    bases: dict[str, Any] = {name: {"recipe": f"{name}.yaml", "kind": name} for name in ("tokenizer", "mllm")}
    bases["mllm"] |= {
        "tokenizer": str(chain.folder / "tokenizer"),
        "overrides": {
            "mllm.model.pixel_condition": "none",
            "mllm.visual_tokenizer": "{tokenizer}",
            "data.sources": {"t2i": {"path": "{codes:t2i}"}},
        },
    }
    claim = {"text": "one is better", "metric": "psnr_scenes", "better": "shared", "than": "alone"}
    plan = {
        "name": "tiny",
        "seeds": [0, 1],
        "bases": bases,
        "variants": variants,
        "data": {"t2i": ["scenes", "--task", "t2i", "--count", "6", "--image-size", "16"]},
        "groups": {
            "tokenizers": {
                "title": "Tokenizers",
                "variants": list(TOKENIZERS),
                "metrics": ["psnr_scenes", "teacher_frechet", "probe_semantic", "pixel_usage"],
                "claims": [claim],
            },
            "models": {
                "title": "Models",
                "variants": ["semantic", "own"],
                "metrics": ["answers/scenes", "drawings/*", "text_nats", "visual_nats"],
            },
        },
        "evaluation": {"scenes": 6, "drawings": 1, "records": 3, "sets": [], "skills": ["single_object"]},
    }
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    return folder / "plan.yaml"


class InThisProcess:
    """Stands for the commands that an ablation starts; nothing is really trained."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def __call__(self, module: str, words: Sequence[str], log: Path) -> None:
        self.started.append(module)
        getattr(self, module)(list(words))

    def train(self, words: list[str]) -> None:
        recipe = parse_recipe(words)
        torch.manual_seed(recipe.seed)
        objective = build_objective(recipe)
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        folder = Path(recipe.output) / "model"
        folder.mkdir(parents=True)
        objective.eval().export(folder, torch.float32)
        save_resolved(recipe, folder / "recipe.yaml")

    def prepare(self, words: list[str]) -> None:
        options = SceneOptions(count=6, image_size=16, task="t2i")
        write_shards(
            SceneConverter(options), OutputOptions(Path(words[words.index("--output") + 1]), progress=False)
        )

    def tokenize(self, words: list[str]) -> None:
        tokenizer, source, output = (
            words[words.index(f"--{n}") + 1] for n in ("tokenizer", "input", "output")
        )
        tokenize_shards(DualTokenizer.from_pretrained(tokenizer), source, output, progress=False)


def test_a_plan_is_run_measured_written_and_not_done_twice(plan_file: Path, tmp_path: Path) -> None:
    plan, folders = load_plan(plan_file), Folders(tmp_path / "runs", tmp_path)
    launch, said = InThisProcess(), list[str]()
    runner = Runner(plan, folders, say=said.append, launch=launch)
    runner.run_all(["tokenizers", "models"], plan.seeds)
    assert launch.started.count("train") == 8
    assert launch.started.count("prepare") == 1
    assert launch.started.count("tokenize") == 3  # of the given tokenizer once, for both seeds

    results = Results.read(plan, folders)
    for variant, seeds in results.found.items():
        assert list(seeds) == [0, 1], variant
    shared, alone = (results.found[name][0]["figures"] for name in TOKENIZERS)
    assert shared["psnr_scenes"] > 0
    assert shared["probe_semantic"] is not None
    assert alone["probe_semantic"] is alone["feature_cosine"] is None  # its semantic branch was never trained
    assert alone["probe_pixel"] is not None
    semantic, own = (results.found[name][1]["figures"] for name in ("semantic", "own"))
    assert not any(name.startswith("drawings") for name in semantic)
    assert semantic["pixel_nats"] is semantic["visual_nats"] is None
    assert semantic["semantic_nats"] > 0
    assert own["visual_nats"] == pytest.approx(own["pixel_nats"] + own["semantic_nats"])
    assert 0 <= own["drawings/single_object"] <= 100

    # Another time: nothing is started, unless a result is missing, and then no training.
    (folders.run("shared", 1) / "result.json").unlink()
    runner.run_all(["tokenizers", "models"], plan.seeds)
    assert launch.started.count("train") == 8
    again = Results.read(plan, folders).found["shared"][1]["figures"]
    assert again == results.found["shared"][1]["figures"]
    assert sum("already done" in line for line in said) == 7

    # All can be measured again; of what has lost its model the result stays.
    lost, kept = folders.run("alone", 0), folders.run("shared", 0)
    shutil.rmtree(lost / "model")
    for folder in (lost, kept):
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**result, "figures": {}}))
    Runner(plan, folders, again=True, say=said.append, launch=launch).run_all(["tokenizers"], [0])
    assert launch.started.count("train") == 8
    found = Results.read(plan, folders).found
    assert found["shared"][0] | {"minutes": 0} == results.found["shared"][0] | {"minutes": 0}
    assert found["alone"][0]["figures"] == {}
    (lost / "result.json").unlink()
    runner.run_all(["tokenizers"], [0])
    assert launch.started.count("train") == 9

    # Another evaluation measures the same models again.
    more = replace(plan, evaluation=replace(plan.evaluation, scenes=7))
    Runner(more, folders, say=said.append, launch=launch).run_all(["tokenizers"], [0])
    assert launch.started.count("train") == 9
    assert Results.read(plan, folders).found["alone"][0]["evaluation"]["scenes"] == 7

    document = tmp_path / "ablations.md"
    written = write_document(results, document, "dualtoken ablate plan.yaml --runs runs")
    assert [path.name for path in written] == [
        document.name,
        "ablations_tokenizers.png",
        "ablations_models.png",
    ]
    assert all(path.stat().st_size > 0 for path in written)
    values = [results.found["shared"][seed]["figures"]["psnr_scenes"] for seed in (0, 1)]
    mean, deviation = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert re.search(rf"\| shared \| 2 \| \**{mean:.2f} ± {deviation:.2f}", document.read_text())

    # Other settings in the same folder are refused.
    with pytest.raises(UserError, match=r"other settings.*--runs"):
        Runner(plan, folders, scale=0.5, launch=launch, say=said.append).run_all(["tokenizers"], [0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_trains_goes_on_after_sigterm_and_writes(plan_file: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    words = [str(plan_file), "--runs", str(runs), "--only", "tokenizers", "--device", "cpu"]
    command = [sys.executable, "-m", "dualtoken.scripts.ablate", *words]
    process = subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, text=True)
    log = runs / "shared" / "seed-0" / "train.log"
    while not log.exists():
        assert process.poll() is None
        signal.sigtimedwait([], 0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 130
    assert not (runs / "ablations.md").exists()
    assert run_command("ablate", words) == 0
    text = (runs / "ablations.md").read_text()
    assert text.count("| 2 |") >= 2
    for variant in TOKENIZERS:
        for seed in (0, 1):
            folder = runs / variant / f"seed-{seed}"
            assert json.loads((folder / "result.json").read_text())["steps"] == 2
            assert not (folder / "checkpoints").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
