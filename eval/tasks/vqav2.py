"""VQAv2: open questions on COCO images, ten human answers each. Goyal et al., arXiv 1612.00837."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json
from .. import Graded, HubData, ImageSource, Item, Task, register
from ..data.files import field, image_folder, image_rows
from ..scorers.vqa_accuracy import vqa_accuracy, vqa_answer
from .prompts import as_text, short_answer

# split -> questions file, annotations file, image folder
FILES = {
    "val": ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014"),
    "test-dev": ("v2_OpenEnded_mscoco_test-dev2015_questions.json", None, "test2015"),
    "test": ("v2_OpenEnded_mscoco_test2015_questions.json", None, "test2015"),
}
ON_HUB = {"val": "validation", "test-dev": "testdev", "test": "test"}

# question, annotation, image
_Row = tuple[Mapping[str, Any], Mapping[str, Any] | None, ImageSource]


@register
class VqaV2(Task):
    """Open questions; an answer scores by how many of ten people gave it."""

    name = "vqav2"
    summary = "open questions on COCO images (soft accuracy over ten people)"
    splits: ClassVar[Mapping[str, int | None]] = {"val": 214354, "test-dev": 107394, "test": 447793}
    source = "visualqa.org/download.html; images: COCO"
    server = "the EvalAI challenge of VQA"
    hub = HubData(
        "lmms-lab-encoder/VQAv2", {split: (f"data/{name}-*.parquet",) for split, name in ON_HUB.items()}
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions with the request for a short answer."""
        path = self.need_file(root, FILES[split][0], "data")
        rows = _parquet_rows(path, split) if path.is_dir() else self._json_rows(path, split)
        items = []
        for row, known, image in rows:
            target: dict[str, Any] = {}
            if known is not None:
                answers = [as_text(given["answer"]) for given in known["answers"]]
                target = {"answers": answers, "type": as_text(known["answer_type"])}
            items.append(Item(str(row["question_id"]), short_answer(row["question"]), (image,), target))
        return items

    def _json_rows(self, path: Path, split: str) -> Iterator[_Row]:
        _, annotations, image_name = FILES[split]
        known: dict[int, dict[str, Any]] = {}
        if annotations is not None:
            key_path = self.need_file(path.parent, annotations)
            known = {row["question_id"]: row for row in field(read_json(key_path), "annotations", key_path)}
        images = image_folder(path.parent, image_name, "images")
        for row in field(read_json(path), "questions", path):
            file = f"COCO_{image_name}_{field(row, 'image_id', path):012}.jpg"
            yield row, known.get(field(row, "question_id", path)), images / file

    def grade(self, item: Item, prediction: Any) -> Graded:
        """Soft accuracy."""
        text, people = str(prediction), item.target["answers"]
        return Graded(vqa_answer(text, people), vqa_accuracy(text, people))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        """The answer type: "yes/no", "number" or "other"."""
        return {"answer_type": [item.target["type"]]}


def _parquet_rows(folder: Path, split: str) -> Iterator[_Row]:
    needed = ("question_id", "question", "answers", "answer_type")
    for row, image in image_rows(folder, f"{ON_HUB[split]}-*.parquet", needed):
        yield row, row if row["answers"] else None, image
