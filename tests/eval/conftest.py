"""A task of numbers and a model that knows some of them, so that no weights are needed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from dualtoken.eval import Graded, Item, Score, ScoringContext, Task, register
from dualtoken.eval.harness import registry


class Numbers(Task):
    name = "numbers"
    summary = "what is n plus n"
    splits: ClassVar[Mapping[str, int | None]] = {"test": 10, "open": None}

    def load(self, root: Path | None, split: str) -> list[Item]:
        return [Item(id=f"q{n}", prompt=f"{n} + {n}", target={"answer": 2 * n}) for n in range(10)]

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        graded = {}
        for item in items:
            answer = predictions[item.id]
            graded[item.id] = Graded(answer or None, float(answer == str(item.target["answer"])))
        accuracy = 100 * sum(one.score or 0.0 for one in graded.values()) / len(graded)
        return Score("accuracy", {"accuracy": accuracy}, items=graded)


class Calculator:
    """Answers all but one right; stops with an error once it has answered `patience` batches."""

    def __init__(self, patience: int = 1000) -> None:
        self.patience = patience
        self.asked: list[str] = []

    def answer(self, items: Sequence[Item], settings: Mapping[str, Any]) -> list[str]:
        if not self.patience:
            raise KeyboardInterrupt
        self.patience -= 1
        self.asked += [item.id for item in items]
        return ["?" if item.id == "q3" else str(item.target["answer"]) for item in items]

    def choose(self, items: Sequence[Item]) -> list[list[float]]:
        return [[-1.0 for _ in item.choices] for item in items]

    def generate_images(self, items, count, seeds, settings) -> list[list[Image.Image]]:
        return [[Image.new("RGB", (8, 8), (seed % 256, j, 0)) for j in range(count)] for seed in seeds]


@pytest.fixture
def numbers() -> Iterator[Task]:
    registry.task_names()
    register(Numbers)
    yield registry.get_task("numbers")
    del registry._REGISTERED["numbers"]


@pytest.fixture
def calculator() -> type[Calculator]:
    return Calculator
