"""GQA: questions made from scene graphs. Hudson and Manning, arXiv 1902.09506."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import Graded, HubData, Item, Task, register
from ..data.files import Row, image_folder, image_rows, json_rows, parquet_files, parse_rows, read_parquet
from ..scorers.exact_match import gqa_answer
from .prompts import short_answer


@register
class Gqa(Task):
    """Compositional questions with one-word answers, the balanced splits; the answer must equal the key."""

    name = "gqa"
    summary = "compositional questions (exact match)"
    splits = {"testdev": 12578, "val": 132062}
    source = "cs.stanford.edu/people/dorarad/gqa/download.html"
    hub = HubData(
        "lmms-lab-encoder/GQA",
        {
            split: tuple(f"{split}_balanced_{part}/{split}-*.parquet" for part in ("instructions", "images"))
            for split in ("testdev", "val")
        },
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        name, table = f"{split}_balanced_questions.json", f"{split}_balanced_instructions"
        path = self.need_file(root, name, f"questions/{name}", f"questions1.2/{name}", table)
        if path.is_dir():
            return parse_rows(_parquet_rows(path, split), _item)
        assert root is not None  # need_file refuses it
        images = image_folder(root, "images")
        return parse_rows(json_rows(path, image=lambda row: images / f"{row['imageId']}.jpg"), _item)

    def grade(self, item: Item, prediction: Any) -> Graded:
        answer = gqa_answer(str(prediction))
        return Graded(answer, float(answer == item.target["answer"]))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        """Open and binary questions (those whose structure is not "query")."""
        return {"type": [item.target["type"]]}


def _parquet_rows(table: Path, split: str) -> Iterator[Row]:
    """Questions and images are two tables."""
    folder, pattern = table.parent / f"{split}_balanced_images", f"{split}-*.parquet"
    images = {row["id"]: row.images for row in image_rows(folder, pattern, ("id",))}
    questions = parquet_files(table, pattern)
    for row in read_parquet(questions, ("id", "imageId", "question", "answer", "types")):
        row.key, row.images = row["id"], Row(images, str(folder))[row["imageId"]]
        yield row


def _item(row: Row) -> Item:
    kind = "open" if (row.get("types") or {}).get("structural") == "query" else "binary"
    target = {"answer": row["answer"], "type": kind}
    return Item(row.key, short_answer(row["question"]), row.images, target)
