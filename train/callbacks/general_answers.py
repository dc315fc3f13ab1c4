"""How many general questions a model still answers as it did before its training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

from ...common.files import write_text
from ...data_pipelines.text.general_questions import GENERAL_QUESTIONS, MAX_NEW_TOKENS
from ...mllm import DualTokenPipeline
from ..config.recipe import Recipe
from ..objectives import Objective
from ..objectives.mllm import MllmObjective
from .base import Callback, TrainState

BATCH = 20


class GeneralAnswers(Callback):
    """Asks `GENERAL_QUESTIONS` before the first step and at every validation; the main process answers.

    `on_validation` gets ``general_answers_kept``, the share of the questions answered correctly before the
    first step that still are, and ``general_answers_right``, the share of all that are. The answers
    themselves are written to ``validation/step-N/general_answers.jsonl``.

    Args:
        every: steps between validations.
    """

    state_name: ClassVar[str] = "general_answers"

    def __init__(self, objective: MllmObjective, every: int) -> None:
        self.objective, self.every = objective, every
        self._before: list[bool] | None = None
        self._first_step = 0

    def before_step(self, state: TrainState) -> None:
        if self._before is not None:
            return
        self._first_step = state.step
        self._before = state.world.on_main(lambda: self._ask(state))
        if state.world.is_main:
            right, total = sum(self._before), len(self._before)
            later = f" (at step {state.step}: its checkpoint holds no earlier answers)" if state.step else ""
            print(
                f"general questions answered before the training: {right} of {total}{later}", file=sys.stderr
            )

    def on_step_end(self, state: TrainState) -> None:
        if state.step % self.every and state.step != state.recipe.run.steps:
            return
        now = state.world.on_main(lambda: self._ask(state))
        assert self._before is not None  # a step has begun
        shares = {"general_answers_right": sum(now) / len(now)}
        if any(self._before):
            kept = [after for before, after in zip(self._before, now, strict=True) if before]
            shares["general_answers_kept"] = sum(kept) / len(kept)
        state.call("on_validation", shares, {})

    def state_dict(self) -> dict[str, Any]:
        return {} if self._before is None else {"before": self._before, "step": self._first_step}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if len(saved.get("before", ())) == len(GENERAL_QUESTIONS):
            self._before, self._first_step = list(map(bool, saved["before"])), saved["step"]

    def _ask(self, state: TrainState) -> list[bool]:
        """Whether each question is answered correctly now."""
        state.engine.eval()
        pipeline = DualTokenPipeline(self.objective.model, self.objective.processor)
        asked = [(None, question.prompt) for question in GENERAL_QUESTIONS]
        with state.autocast():
            answers = pipeline.answer_many(asked, MAX_NEW_TOKENS, batch_size=BATCH)
        state.engine.train()
        pairs = list(zip(GENERAL_QUESTIONS, answers, strict=True))
        right = [question.is_met(answer) for question, answer in pairs]
        folder = Path(state.recipe.output) / "validation" / f"step-{state.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"prompt": question.prompt, "answer": answer, "right": met}, ensure_ascii=False)
            for (question, answer), met in zip(pairs, right, strict=True)
        ]
        write_text(folder / "general_answers.jsonl", "".join(f"{line}\n" for line in lines))
        return right


def general_answers(recipe: Recipe, objective: Objective) -> list[Callback]:
    """The callback where the recipe wants it."""
    if recipe.validation is None or not recipe.validation.general_questions:
        return []
    assert isinstance(objective, MllmObjective)  # checked with the recipe
    return [GeneralAnswers(objective, recipe.validation.every)]
