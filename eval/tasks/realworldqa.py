"""RealWorldQA: questions on photos, many from vehicles. Published by xAI with Grok-1.5 Vision."""

from pathlib import Path
from typing import Any

from .. import Graded, HubData, Item, Task, register
from ..data.files import image_rows
from ..scorers.exact_match import realworldqa_answer


@register
class RealWorldQa(Task):
    """Letters, numbers and single words; each question includes the instruction how to answer."""

    name = "realworldqa"
    summary = "questions on photos (exact match)"
    splits = {"test": 765}
    source = "huggingface.co/datasets/xai-org/RealworldQA, its data folder"
    hub = HubData("xai-org/RealworldQA", {"test": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        rows = image_rows(self.need_file(root, "data"), f"{split}-*.parquet", ("question", "answer"))
        return [Item(row.key, row["question"], row.images, {"answer": row["answer"]}) for row in rows]

    def grade(self, item: Item, prediction: Any) -> Graded:
        answer = realworldqa_answer(str(prediction))
        return Graded(answer or None, float(answer == realworldqa_answer(item.target["answer"])))
