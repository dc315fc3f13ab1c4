"""RealWorldQA: questions on photos, many from vehicles. Published by xAI with Grok-1.5 Vision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from .. import Graded, HubData, Item, Task, register
from ..data.files import image_rows
from ..scorers.exact_match import realworldqa_answer


@register
class RealWorldQa(Task):
    """Letters, numbers and single words; each question includes the request how to answer."""

    name = "realworldqa"
    summary = "questions on photos (exact match)"
    splits: ClassVar[Mapping[str, int | None]] = {"test": 765}
    source = "huggingface.co/datasets/xai-org/RealworldQA, its data folder"
    hub = HubData("xai-org/RealworldQA", {"test": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions word for word, with the request that is part of them."""
        folder = self.need_file(root, "data")
        rows = image_rows(folder, f"{split}-*.parquet", ("question", "answer"))
        items = [
            Item(str(number), row["question"], (image,), {"answer": row["answer"]})
            for number, (row, image) in enumerate(rows)
        ]
        return items

    def grade(self, item: Item, prediction: Any) -> Graded:
        """Equality, after case, full stops and number words."""
        answer = realworldqa_answer(str(prediction))
        return Graded(answer or None, float(answer == realworldqa_answer(item.target["answer"])))
