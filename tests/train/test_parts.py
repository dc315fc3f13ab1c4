"""Small parts of training: parameter groups, schedules, turn shuffling, losses, checkpoint bookkeeping."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import assistant, image_part, question_turns, user
from dualtoken.mllm import normalise_messages
from dualtoken.train.backend.distributed import World
from dualtoken.train.callbacks.losses import require_finite_losses
from dualtoken.train.callbacks.monitors import Monitor
from dualtoken.train.callbacks.weight_average import WeightAverage
from dualtoken.train.config.optimizer import OptimizerConfig
from dualtoken.train.config.run import RunConfig
from dualtoken.train.config.schedule import ScheduleConfig
from dualtoken.train.metrics import Metrics
from dualtoken.train.objectives.tokenizer.reconstruction import distillation_loss, gradient_loss
from dualtoken.train.objectives.turn_shuffling import shuffle_question_turns
from dualtoken.train.optimizers import learning_rate_factor, parameter_groups

ALONE = World()


def test_parameter_groups_hold_every_trained_parameter_once() -> None:
    decoder = nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2))
    model = nn.ModuleDict({"encoder": nn.Linear(3, 4), "decoder": decoder})
    model["encoder"].bias.requires_grad_(False)
    config = OptimizerConfig(lr=1.0, weight_decay=0.1, lr_scale={"decoder": 3.0, "decoder.1": 5.0})
    groups = parameter_groups(model, config)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    by_parameter = {id(p): group for group in groups for p in group["params"]}
    norm, matrix = model["decoder"][1].weight, model["decoder"][0].weight
    assert (by_parameter[id(norm)]["lr"], by_parameter[id(norm)]["weight_decay"]) == (5.0, 0.0)
    assert (by_parameter[id(matrix)]["lr"], by_parameter[id(matrix)]["weight_decay"]) == (3.0, 0.1)


def test_muon_trains_the_matrices_of_layers_and_nothing_else() -> None:
    layers = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})])
    model = nn.ModuleDict({"tower": nn.ModuleDict({"embed": nn.Embedding(5, 4), "layers": layers})})
    groups = parameter_groups(model, OptimizerConfig(lr=1.0, muon_lr=0.5, lr_scale={"tower": 2.0}))
    muon = [group for group in groups if group["use_muon"]]
    assert [id(p) for group in muon for p in group["params"]] == [id(layers[0]["proj"].weight)]
    assert [group["lr"] for group in groups] == [2.0, 2.0, 1.0]
    assert layers[0]["proj"].weight.use_muon
    assert not model["tower"]["embed"].weight.use_muon


def test_wsd_keeps_its_peak_until_the_decay() -> None:
    config = ScheduleConfig(kind="wsd", warmup_steps=10, final_ratio=0.0, decay_share=0.2)
    factors = [learning_rate_factor(step, 100, config) for step in range(101)]
    assert factors[10:80] == [1.0] * 70
    assert factors[90] == pytest.approx(0.5)
    # A longer run is the same up to the shorter one's decay.
    assert [learning_rate_factor(step, 200, config) for step in range(80)] == factors[:80]


@pytest.mark.parametrize(("kind", "end"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0), ("wsd", 0.1)])
def test_schedules_warm_up_and_end_where_they_should(kind: Any, end: float) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=10, final_ratio=0.1)
    factors = [learning_rate_factor(step, 100, config) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert max(factors) == pytest.approx(1.0)
    assert factors[100] == pytest.approx(end)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_shuffled_turns_keep_every_pair_and_the_images_in_front() -> None:
    image = image_part("a.png")
    messages = question_turns([image], [(f"q{n}", f"a{n}") for n in range(5)])
    shuffled = shuffle_question_turns(messages, random.Random(1))
    assert shuffled != messages
    assert shuffled[0]["content"][0] is image
    texts = [part["text"] for message in shuffled for part in message["content"] if part["type"] == "text"]
    assert sorted(zip(texts[::2], texts[1::2], strict=True)) == [(f"q{n}", f"a{n}") for n in range(5)]
    assert sum(part["type"] == "image" for message in shuffled for part in message["content"]) == 1
    assert messages == question_turns([image], [(f"q{n}", f"a{n}") for n in range(5)])  # left as it was


def test_shuffled_turns_follow_the_system_turn_and_are_not_empty() -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    silent = [user(image_part("a.png")), assistant("a0"), *question_turns([], [("q1", "a1"), ("q2", "a2")])]
    for seed in range(5):
        first, *turns = shuffle_question_turns([system, *silent], random.Random(seed))
        assert first == system
        assert turns[0]["content"][0] == image_part("a.png")
        assert normalise_messages([first, *turns]) == [first, *turns]


@pytest.mark.parametrize(
    "messages",
    [
        [user(image_part("a.png"), "A?"), user("B?"), assistant("x"), assistant("y")],
        [user("a red circle"), assistant(image_part("a.png"))],
        [user(image_part("a.png"), "What?"), assistant("This.")],
        [user("Hi."), assistant("Hello."), user("Draw."), assistant(image_part("a.png"))],
        [user(image_part("a.png"), "A?"), assistant("x"), user(image_part("b.png"), "B?"), assistant("y")],
    ],
)
def test_records_whose_turns_depend_on_each_other_are_not_shuffled(messages: list[dict[str, Any]]) -> None:
    assert shuffle_question_turns(messages, random.Random(0)) == messages


def test_losses_vanish_for_a_perfect_copy_and_only_then() -> None:
    features, image = torch.randn(3, 7, 5), torch.rand(3, 3, 8, 8)
    assert distillation_loss(features, features).abs().max() < 1e-6
    assert gradient_loss(image, image).max() == 0
    assert distillation_loss(features, features.flip(1)).min() > 0.1
    # A brightness offset has no gradient error; a shifted edge has.
    assert gradient_loss(image + 0.5, image).max() < 1e-6
    assert gradient_loss(image.roll(1, -1), image).min() > 0.01


def test_metrics_are_means_over_targets_not_over_batches() -> None:
    metrics = Metrics(ALONE)
    for values in ([1.0, 2.0, 3.0], [10.0]):
        metrics.record("loss/text", torch.tensor(values).sum(), float(len(values)))
    assert metrics.read(reset=False) == {"loss/text": 4.0}
    assert metrics.read() == {"loss/text": 4.0}
    metrics.record("loss/text", torch.tensor(5.0), 1.0)
    assert metrics.read() == {"loss/text": 5.0}  # reading starts again
    assert metrics.read() == {}


def test_metrics_are_reduced_as_recorded() -> None:
    metrics = Metrics(ALONE)
    for value in (3.0, 5.0, 4.0):
        metrics.record("sum", value, reduce="sum")
        metrics.record("max", value, reduce="max")
        metrics.record("last", value, reduce="main")
        metrics.record(["a", "b"], torch.tensor([value, 0.0]), torch.tensor([2.0, 0.0]))
    metrics.record("none", 0.0, 0.0)
    # Elements without a target are left out, such as a source that was not sampled.
    assert metrics.read() == {"sum": 12.0, "max": 5.0, "last": 4.0, "a": 2.0, "none": 0.0}


def test_metrics_are_reduced_over_all_processes_at_once() -> None:
    summed: list[torch.Tensor] = []

    def both(tensor: torch.Tensor) -> torch.Tensor:
        summed.append(tensor)
        return sum(summed[-2:], torch.zeros(()))

    worlds: list[Any] = [SimpleNamespace(rank=rank, size=2, device="cpu", sum=both) for rank in range(2)]
    processes = [Metrics(world) for world in worlds]
    for metrics, value in zip(processes, (3.0, -5.0), strict=True):
        metrics.record("mean", value, 4.0)
        metrics.record("sum", value, reduce="sum")
        metrics.record("max", value, reduce="max")
        metrics.record("last", value, reduce="main")
    processes[0].read()
    assert processes[1].read() == {"mean": -0.25, "sum": -2.0, "max": 3.0, "last": -5.0}
    assert len(summed) == 2  # one all-reduce each


def test_a_non_finite_loss_stops_the_run_and_is_named() -> None:
    metrics = Metrics(ALONE)
    metrics.record("loss/text", torch.tensor(1.0), 1.0)
    metrics.record("loss/pixel", torch.tensor(float("nan")), 1.0)
    metrics.record("gradient_norm", math.nan, reduce="main")
    with pytest.raises(UserError, match=r"^loss/pixel became .* step 7"):
        require_finite_losses(metrics.read(), 7)


def test_average_of_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.5)
    expected = model.weight.item()
    for value in (1.0, 3.0, 5.0):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()
        decay = min(0.5, (1 + average.num_updates) / (10 + average.num_updates))
        expected = decay * expected + (1 - decay) * value
    restored = WeightAverage(model, decay=0.5)
    restored.load_state_dict(average.state_dict())
    with restored.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 5.0
    assert restored.num_updates == 3


def test_the_log_of_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    recipe: Any = SimpleNamespace(output=str(tmp_path), run=RunConfig(steps=8))
    for start, stop in ((0, 6), (3, 8)):
        monitor = Monitor(recipe, ALONE, start, samples_per_step=1)
        for step in range(start + 1, stop + 1):
            monitor.log(step, {"loss/text": float(start)})
        monitor.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [int(line.split('"step": ')[1].split(",")[0]) for line in lines] == list(range(1, 9))
