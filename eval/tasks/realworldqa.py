"""RealWorldQA: questions on photos, many from vehicles. Published by xAI with Grok-1.5 Vision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..data.files import distinct, image_from_cell, parquet_files, read_parquet
from ..data.hub import HubData
from ..harness.registry import register
from ..harness.score_tables import accuracy_table
from ..harness.task import Benchmark, Item, Score
from ..scorers.exact_match import realworldqa_answer


@register
class RealWorldQa(Benchmark):
    """Letters, numbers and single words; each question says itself how to answer."""

    name = "realworldqa"
    summary = "questions on photos (exact match)"
    splits: ClassVar[Mapping[str, int | None]] = {"test": 765}
    source = "huggingface.co/datasets/xai-org/RealworldQA, its data folder"
    hub = HubData("xai-org/RealworldQA", {"test": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions word for word, with the request that is part of them."""
        folder = self.need_file(root, "data")
        rows = read_parquet(parquet_files(folder, f"{split}-*.parquet"), ("image", "question", "answer"))
        items = [
            Item(
                str(number),
                row["question"],
                (image_from_cell(row["image"], f"{folder}, row {number}"),),
                {"answer": row["answer"]},
            )
            for number, row in enumerate(rows)
        ]
        return distinct(items, folder)

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """Accuracy by equality, after case, full stops and number words."""
        given = {item.id: realworldqa_answer(str(predictions[item.id])) for item in items}
        correct = {
            item.id: float(given[item.id] == realworldqa_answer(item.target["answer"])) for item in items
        }
        return accuracy_table(correct, unparsed=sum(not answer for answer in given.values()))
