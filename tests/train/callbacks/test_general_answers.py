"""What a run keeps of the answers that its language model gave before, and the warning without text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.text.general_questions import GENERAL_QUESTIONS, MAX_NEW_TOKENS
from dualtoken.mllm import DualTokenPipeline
from dualtoken.train.callbacks import general_answers
from dualtoken.train.config.data import DataConfig, SourceConfig
from dualtoken.train.config.optimizer import OptimizerConfig
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import Recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.planning.language import forgetting, text_share

from ..conftest import Chain, train_here
from ..test_training import assert_same_losses, losses

ASKING: dict[str, Any] = {"every": 3, "general_questions": True}


def shares(run: Path) -> list[dict[str, float]]:
    lines = (run / "validation.jsonl").read_text().splitlines()
    return [
        {name.removeprefix("validation/general_answers_"): value for name, value in json.loads(line).items()}
        for line in lines
    ]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The indices of the questions that are answered correctly, for each time that all are asked."""
    plan = [{0, 1, 2, 10}, {0, 2, 5}, {10}]
    times = iter(plan)
    expected = {question.prompt: question.expected for question in GENERAL_QUESTIONS}

    def answers(self: Any, items: list[Any], max_new_tokens: int, batch_size: int) -> list[str]:
        right = next(times)
        assert (len(items), max_new_tokens) == (40, MAX_NEW_TOKENS)
        return [expected[prompt] if n in right else "" for n, (_, prompt) in enumerate(items)]

    monkeypatch.setattr(DualTokenPipeline, "answer_many", answers)
    return plan


def test_the_share_of_correct_answers_that_are_kept_is_reported(
    chain: Chain, tmp_path: Path, scripted: list[set[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_here(chain.recipe("mllm", tmp_path / "run", validation=ASKING)) == 0
    assert "general questions answered before the training: 4 of 40" in capsys.readouterr().err
    assert shares(tmp_path / "run") == [
        {"step": 3, "kept": 0.5, "right": 0.075},
        {"step": 6, "kept": 0.25, "right": 0.025},
    ]
    written = (tmp_path / "run" / "validation" / "step-00000003" / "general_answers.jsonl").read_text()
    assert [n for n, line in enumerate(written.splitlines()) if json.loads(line)["right"]] == [0, 2, 5]


def test_a_resumed_run_compares_with_the_model_before_the_first_step(
    chain: Chain, tmp_path: Path, scripted: list[set[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = chain.recipe("mllm", tmp_path / "run", validation=ASKING)
    assert train_here([*arguments, "--run.stop_after", "3"]) == 0
    assert train_here(arguments) == 0
    assert [one["kept"] for one in shares(tmp_path / "run")] == [0.5, 0.25]
    assert capsys.readouterr().err.count("general questions answered before") == 1


def test_nothing_is_kept_of_nothing_and_asking_does_not_change_the_training(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(general_answers, "MAX_NEW_TOKENS", 2)
    assert train_here(chain.recipe("mllm", tmp_path / "plain")) == 0
    assert train_here(chain.recipe("mllm", tmp_path / "asked", validation=ASKING)) == 0
    assert_same_losses(losses(tmp_path / "plain"), losses(tmp_path / "asked"))
    assert [sorted(one) for one in shares(tmp_path / "asked")] == [["right", "step"]] * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--run.zero_stage", "3"], "general_questions need run.zero_stage 0-2"),
        (["--contrastive"], "general_questions are for the unified model"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(
    chain: Chain, tmp_path: Path, changes: list[str], reason: str
) -> None:
    if "--contrastive" in changes:
        arguments = chain.recipe("contrastive", tmp_path / "run", validation=ASKING)
    else:
        arguments = [*chain.recipe("mllm", tmp_path / "run", validation=ASKING), *changes]
    with pytest.raises(UserError, match=reason):
        parse_recipe(arguments)


MANIFESTS: dict[str, Any] = {
    "photos": {"shards": [{"images": 5}, {"images": 0}]},
    "chat": {"shards": [{"images": 0}, {"images": 0}]},
}


def test_fine_tuning_a_language_model_that_can_chat_without_text_is_warned_about(
    chain: Chain, tmp_path: Path
) -> None:
    def recipe(**weights: float) -> Recipe:
        sources = {name: SourceConfig(name, weight) for name, weight in weights.items()}
        return replace(written, data=DataConfig(sources))

    written = parse_recipe(chain.recipe("mllm", tmp_path / "run"))
    objective: Any = build_objective(written)
    # A language model without a chat template has no conversation to forget.
    assert forgetting(recipe(photos=1.0), objective, MANIFESTS) is None
    own = objective.processor.chat_format
    objective.processor.chat_format = replace(own, user_start="<|im_start|>user\n")
    assert text_share(recipe(photos=3.0, chat=1.0).data, MANIFESTS) == 0.25
    assert forgetting(recipe(photos=3.0, chat=1.0), objective, MANIFESTS) is None
    warning = str(forgetting(recipe(photos=1.0), objective, MANIFESTS))
    assert "0% of data.sources" in warning
    assert "dualtoken prepare replies" in warning
    assert "2% of data.sources" in str(forgetting(recipe(photos=49.0, chat=1.0), objective, MANIFESTS))
    still = replace(recipe(photos=1.0), optimizer=OptimizerConfig(group_lr={"llm": 0.0}))
    assert forgetting(still, objective, MANIFESTS) is None
    objective.model.language_model.requires_grad_(False)  # only projectors and heads are trained
    assert forgetting(recipe(photos=1.0), objective, MANIFESTS) is None
