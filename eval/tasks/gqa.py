"""GQA: questions made from scene graphs. Hudson and Manning, arXiv 1902.09506."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json
from ..data.files import distinct, field, image_folder, image_from_cell, parquet_files, read_parquet
from ..data.hub import HubData
from ..harness.registry import register
from ..harness.score_tables import accuracy_table
from ..harness.task import Benchmark, ImageSource, Item, Score
from ..scorers.exact_match import gqa_answer
from .prompts import short_answer


@register
class Gqa(Benchmark):
    """Compositional questions with one-word answers, the balanced splits."""

    name = "gqa"
    summary = "compositional questions (exact match)"
    splits: ClassVar[Mapping[str, int | None]] = {"testdev": 12578, "val": 132062}
    source = "cs.stanford.edu/people/dorarad/gqa/download.html"
    hub = HubData(
        "lmms-lab-encoder/GQA",
        {
            split: tuple(f"{split}_balanced_{part}/{split}-*.parquet" for part in ("instructions", "images"))
            for split in ("testdev", "val")
        },
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions with the request for a short answer."""
        name = f"{split}_balanced_questions.json"
        places = (name, f"questions/{name}", f"questions1.2/{name}", f"{split}_balanced_instructions")
        path = self.need_file(root, *places)
        assert root is not None  # need_file refused it
        rows = _parquet_rows(root, split) if path.is_dir() else _json_rows(path, image_folder(root, "images"))
        items = []
        for number, row, image in rows:
            kind = "open" if (row.get("types") or {}).get("structural") == "query" else "binary"
            target = {"answer": field(row, "answer", path), "type": kind}
            items.append(Item(number, short_answer(row["question"]), (image,), target))
        return distinct(items, path)

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """Accuracy over all, over open and over binary questions (those whose structure is not "query")."""
        correct = {
            item.id: float(gqa_answer(str(predictions[item.id])) == item.target["answer"]) for item in items
        }
        return accuracy_table(correct, {"type": {item.id: [item.target["type"]] for item in items}})


# id, question, image
_Row = tuple[str, Mapping[str, Any], ImageSource]


def _json_rows(path: Path, images: Path) -> Iterator[_Row]:
    for number, row in read_json(path).items():
        yield number, row, images / f"{field(row, 'imageId', path)}.jpg"


def _parquet_rows(root: Path, split: str) -> Iterator[_Row]:
    """Questions and images are two tables."""
    folder = root / f"{split}_balanced_images"
    images = {
        row["id"]: image_from_cell(row["image"], f"{folder}, image {row['id']}")
        for row in read_parquet(parquet_files(folder, f"{split}-*.parquet"), ("id", "image"))
    }
    folder = root / f"{split}_balanced_instructions"
    needed = ("id", "imageId", "question", "answer", "types")
    for row in read_parquet(parquet_files(folder, f"{split}-*.parquet"), needed):
        yield row["id"], row, field(images, row["imageId"], folder)
