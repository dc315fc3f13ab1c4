"""GQA: questions made from scene graphs. Hudson and Manning, arXiv 1902.09506."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..benchmark import Benchmark, Item, Score
from ..files import distinct, field, image_folder
from ..json_lines import read_json
from ..prompts import short_answer
from ..registry import register
from ..score_tables import accuracy_table
from ..scorers.exact_match import gqa_answer


@register
class Gqa(Benchmark):
    """Compositional questions with one-word answers, the balanced splits."""

    name = "gqa"
    summary = "compositional questions (exact match)"
    splits: ClassVar[Mapping[str, int | None]] = {"testdev": 12578, "val": 132062}
    source = "cs.stanford.edu/people/dorarad/gqa/download.html"

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions with the request for a short answer."""
        name = f"{split}_balanced_questions.json"
        path = self.need_file(root, name, f"questions/{name}", f"questions1.2/{name}")
        assert root is not None  # need_file refused it
        images = image_folder(root, "images")
        items = []
        for number, row in read_json(path).items():
            kind = "open" if row.get("types", {}).get("structural") == "query" else "binary"
            image = images / f"{field(row, 'imageId', path)}.jpg"
            target = {"answer": field(row, "answer", path), "type": kind}
            items.append(Item(number, short_answer(row["question"]), (image,), target))
        return distinct(items, path)

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """Accuracy over all, over open and over binary questions (those whose structure is not "query")."""
        correct = {
            item.id: float(gqa_answer(str(predictions[item.id])) == item.target["answer"]) for item in items
        }
        return accuracy_table(correct, {"type": {item.id: [item.target["type"]] for item in items}})
