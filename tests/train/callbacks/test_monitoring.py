"""What a run measures besides, what of it is trained, and how it ends when it hangs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import timedelta
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.shards.reader import ShardDataset
from dualtoken.train.backend.distributed import World
from dualtoken.train.callbacks.hang_guard import HangGuard
from dualtoken.train.callbacks.monitors import Monitor
from dualtoken.train.config.optimizer import OptimizerConfig
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import plain_recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.optimizers import parameter_groups

from ..conftest import Chain, run_training
from ..test_training import assert_same_losses, losses


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def objective_of(chain: Chain, folder: Path, *options: str) -> Any:
    return build_objective(parse_recipe([*chain.recipe("mllm", folder / "run"), *options]))


def test_validation_measures_and_generates_without_touching_the_run(chain: Chain, tmp_path: Path) -> None:
    validation = {
        "every": 3,
        "sources": {name: {"path": str(chain.folder / f"codes_{name}")} for name in ("t2i", "vqa")},
        "batches": 2,
        "prompts": ["a red circle", "A blue star!"],
    }
    run_training(chain.recipe("mllm", tmp_path / "plain"))
    run_training(chain.recipe("mllm", tmp_path / "watched", validation=validation))
    assert_same_losses(losses(tmp_path / "plain"), losses(tmp_path / "watched"))
    measured = lines(tmp_path / "watched" / "validation.jsonl")
    assert [line["step"] for line in measured] == [3, 6]
    names = {"t2i/text", "t2i/pixel", "t2i/semantic", "vqa/text"}
    assert {f"validation/{name}" for name in names} <= measured[0].keys()
    assert measured[1]["validation/t2i/text"] < measured[0]["validation/t2i/text"]
    folder = tmp_path / "watched" / "validation" / "step-00000006"
    assert sorted(path.name for path in folder.iterdir()) == ["00-a-red-circle.png", "01-a-blue-star.png"]
    with Image.open(folder / "00-a-red-circle.png") as image:
        assert image.size == (16, 16)


class FakeWandb(ModuleType):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.opened: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def init(self, **given: Any) -> None:
        self.opened = given

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged.append((step, values))

    def Image(self, pixels: Any) -> tuple[int, ...]:
        return pixels.shape

    def finish(self) -> None: ...


def test_generated_images_and_the_recipe_reach_tensorboard_and_wandb(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    recipe = parse_recipe([*chain.recipe("mllm", tmp_path / "run"), "--run.wandb_project", "tests"])
    Path(recipe.output).mkdir()
    Image.new("RGB", (16, 8), "red").save(tmp_path / "image.png")
    monitor = Monitor(recipe, World(), start=0, samples_per_step=1)
    state: Any = SimpleNamespace(step=3)
    monitor.on_validation(state, {"t2i/text": 1.5}, {"a red circle": tmp_path / "image.png"})
    monitor.close()
    assert wandb.opened["project"] == "tests"
    assert wandb.opened["config"] == plain_recipe(recipe)
    assert (3, {"generated/a red circle": (8, 16, 3)}) in wandb.logged
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (image,) = events.Images("generated/a red circle")
    assert (image.step, image.width, image.height) == (3, 16, 8)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_validation_is_the_same_at_stage_three(chain: Chain, tmp_path: Path) -> None:
    sources = {name: {"path": str(chain.folder / f"codes_{name}")} for name in ("t2i", "vqa")}
    sources["chat"] = {"path": str(chain.folder / "chat")}
    validation = {"every": 3, "sources": sources, "batches": 4}
    for stage in ("1", "3"):
        recipe = chain.recipe("mllm", tmp_path / stage, validation=validation)
        run_training([*recipe, "--run.zero_stage", stage], processes=2)
    one, other = (lines(tmp_path / stage / "validation.jsonl") for stage in ("1", "3"))
    assert_same_losses(one, other, 1e-5)


def test_losses_by_source_add_up_to_the_losses(chain: Chain, tmp_path: Path) -> None:
    objective = objective_of(chain, tmp_path, "--mllm.model.visual_target_fraction", "1.0")
    sources = [ShardDataset(chain.folder / name) for name in ("codes_t2i", "codes_vqa", "chat")]
    examples = [objective.prepare(source[0], 1) for source in sources]
    batch, source_ids = objective.collate(examples), torch.arange(3)
    terms = objective(**batch)
    counts = objective.target_counts(batch)
    by_source = objective.source_sums(batch, source_ids, 3)
    assert by_source.keys() == terms.keys()
    for name, term in terms.items():
        totals, targets = by_source[name]
        assert float(totals.sum()) == pytest.approx(float(term.total.detach()), rel=1e-5)
        assert float(targets.sum()) == counts[name]
    assert by_source["pixel"][1, 1:].tolist() == [0.0, 0.0]  # only the first one generates
    alone = objective.collate(examples[2:])
    objective(**alone)
    one = objective.source_sums(alone, source_ids[2:], 3)
    assert float(one["text"][0, 2]) == pytest.approx(float(by_source["text"][0, 2]), rel=1e-4)


def test_work_counts_tokens_images_and_arithmetic(chain: Chain, tmp_path: Path) -> None:
    objective = objective_of(chain, tmp_path)
    source = ShardDataset(chain.folder / "codes_t2i")
    batch = objective.collate([objective.prepare(source[n], n) for n in range(3)])
    work = objective.work(batch)
    assert (work.tokens, work.images) == (float(batch["attention_mask"].sum()), 3.0)
    assert work.flops > 6 * work.tokens


def test_groups_have_separate_learning_rates(chain: Chain, tmp_path: Path) -> None:
    objective = objective_of(chain, tmp_path)
    rates = {"projectors": 4.0, "heads": 3.0, "embeddings": 2.0}
    groups = parameter_groups(objective, OptimizerConfig(lr=1.0, group_lr=rates))
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    expected = {"projector": 4.0, "depth_transformer": 3.0, "language_model": 1.0}
    embedding = objective.model.get_input_embeddings().weight
    for name, parameter in objective.model.named_parameters():
        part = next(part for part in expected if part in name.split("."))
        assert rate[id(parameter)] == (2.0 if parameter is embedding else expected[part]), name
    with pytest.raises(UserError, match=r"group_lr names head; .* projectors, heads, embeddings, llm"):
        parameter_groups(objective, OptimizerConfig(group_lr={"head": 1.0}))


def test_a_stage_trains_only_its_parts(chain: Chain, tmp_path: Path) -> None:
    parts = ["branches"]
    objective = objective_of(chain, tmp_path, "--mllm.trained", json.dumps(parts))
    for name, parameter in objective.model.named_parameters():
        assert parameter.requires_grad == (name.split(".")[0] in parts)
    with pytest.raises(
        UserError,
        match=r"mllm.trained \['heads'\] matches no parameter; the model's parts are branches, language",
    ):
        objective_of(chain, tmp_path, "--mllm.trained", '["heads"]')
    (path,) = chain.recipe("mllm", tmp_path / "both")
    content = yaml.safe_load(Path(path).read_text())
    content["mllm"] |= {"llm": "somewhere", "lora": {"rank": 2}, "trained": parts}
    Path(path).write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"mllm\.trained and mllm\.lora"):
        parse_recipe([path])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_warm_up_of_projectors_and_heads_runs_at_every_stage(chain: Chain, tmp_path: Path) -> None:
    parts = ["--mllm.trained", '["branches"]']
    runs = []
    for stage in ("0", "2", "3"):
        recipe = chain.recipe("mllm", tmp_path / stage)
        run_training([*recipe, *parts, "--run.zero_stage", stage], processes=2)
        runs.append(losses(tmp_path / stage))
    for other in runs[1:]:
        assert_same_losses(runs[0], other, 1e-5)


def test_an_error_of_communication_names_rank_and_phase() -> None:
    guard = HangGuard(3, timedelta(minutes=1))
    guard.enter("step 7: waiting for data")
    with (
        pytest.raises(
            RuntimeError, match=r"rank 3 .* in phase 'step 7: waiting for data': Connection closed"
        ),
        guard.watched(),
    ):
        raise RuntimeError("Connection closed by peer")
    guard = HangGuard(0, timedelta(minutes=1))
    with pytest.raises(RuntimeError, match=r"^out of memory$"), guard.watched():
        raise RuntimeError("out of memory")


def test_a_process_that_is_stuck_ends_and_names_its_phase() -> None:
    program = (
        "import time; from datetime import timedelta\n"
        "from dualtoken.train.callbacks.hang_guard import HangGuard\n"
        "HangGuard._GRACE = 0.0\n"
        "HangGuard(1, timedelta(seconds=0.5)).enter('step 2: waiting for data')\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    stuck = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert stuck.returncode == 1
    assert "rank 1 has been in phase 'step 2: waiting for data'" in stuck.stderr
    assert time.monotonic() - start < 50
