"""Forty general questions without images: what fine-tuning on images keeps of a language model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...data_pipelines.text.general_questions import GENERAL_QUESTIONS, MAX_NEW_TOKENS, GeneralQuestion
from .. import Graded, Item, Task, register


@register
class General40(Task):
    """Per cent of answers that meet the exact rule of their question, over all and over each kind.

    The questions come with the package, and no judge is needed: compare a model with the one that its
    training started from.
    """

    name = "general40"
    summary = "general questions without images (capitals, sums, sentences, formats), by exact rules"
    splits = {"test": len(GENERAL_QUESTIONS)}
    generation = {"max_new_tokens": MAX_NEW_TOKENS}

    def load(self, root: Path | None, split: str) -> list[Item]:
        return [
            Item(f"{one.kind}-{number}", one.prompt, target=vars(one))
            for number, one in enumerate(GENERAL_QUESTIONS)
        ]

    def grade(self, item: Item, prediction: Any) -> Graded:
        return Graded(prediction, float(GeneralQuestion(**item.target).is_met(prediction)))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        return {"kind": [item.target["kind"]]}
