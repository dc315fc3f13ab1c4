"""GQA: questions made from scene graphs. Hudson and Manning, arXiv 1902.09506."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json
from .. import Graded, HubData, ImageSource, Item, Task, register
from ..data.files import field, image_folder, image_rows, parquet_files, read_parquet
from ..scorers.exact_match import gqa_answer
from .prompts import short_answer

# id, question, image
_Row = tuple[str, Mapping[str, Any], ImageSource]


@register
class Gqa(Task):
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
        name, table = f"{split}_balanced_questions.json", f"{split}_balanced_instructions"
        path = self.need_file(root, name, f"questions/{name}", f"questions1.2/{name}", table)
        assert root is not None  # need_file refused it
        rows = _parquet_rows(root, split) if path.is_dir() else _json_rows(path, image_folder(root, "images"))
        items = []
        for key, row, image in rows:
            kind = "open" if (row.get("types") or {}).get("structural") == "query" else "binary"
            target = {"answer": field(row, "answer", path), "type": kind}
            items.append(Item(key, short_answer(row["question"]), (image,), target))
        return items

    def grade(self, item: Item, prediction: Any) -> Graded:
        """Equality with the key."""
        answer = gqa_answer(str(prediction))
        return Graded(answer, float(answer == item.target["answer"]))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        """Open and binary questions (those whose structure is not "query")."""
        return {"type": [item.target["type"]]}


def _json_rows(path: Path, images: Path) -> Iterator[_Row]:
    for key, row in read_json(path).items():
        yield key, row, images / f"{field(row, 'imageId', path)}.jpg"


def _parquet_rows(root: Path, split: str) -> Iterator[_Row]:
    """Questions and images are two tables."""
    folder, pattern = root / f"{split}_balanced_images", f"{split}-*.parquet"
    images = {row["id"]: image for row, image in image_rows(folder, pattern, ("id",))}
    questions = parquet_files(root / f"{split}_balanced_instructions", pattern)
    for row in read_parquet(questions, ("id", "imageId", "question", "answer", "types")):
        yield row["id"], row, field(images, row["imageId"], folder)
