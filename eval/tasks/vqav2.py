"""VQAv2: open questions on COCO images, ten human answers each. Goyal et al., arXiv 1612.00837."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json
from ..data.files import CellImages, distinct, field, image_folder, parquet_files, read_parquet
from ..data.hub import HubData
from ..harness.registry import register
from ..harness.score_tables import accuracy_table, no_keys
from ..harness.task import Benchmark, ImageSource, Item, Score
from ..scorers.vqa_accuracy import vqa_accuracy
from .prompts import short_answer, written

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
class VqaV2(Benchmark):
    """Open questions; an answer scores by how many of ten people gave it."""

    name = "vqav2"
    summary = "open questions on COCO images (soft accuracy over ten people)"
    splits: ClassVar[Mapping[str, int | None]] = {"val": 214354, "test-dev": 107394, "test": 447793}
    source = "visualqa.org/download.html; images: COCO"
    hub = HubData(
        "lmms-lab-encoder/VQAv2", {split: (f"data/{name}-*.parquet",) for split, name in ON_HUB.items()}
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions with the request for a short answer."""
        path = self.need_file(root, FILES[split][0], "data")
        rows = _parquet_rows(path, split) if path.is_dir() else self._json_rows(path, split)
        items = [
            Item(str(row["question_id"]), short_answer(row["question"]), (image,), _target(annotation))
            for row, annotation, image in rows
        ]
        return distinct(items, path)

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

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """Accuracy over all and of each answer type ("yes/no", "number", "other")."""
        if any("answers" not in item.target for item in items):
            return no_keys("test and test-dev", "the EvalAI challenge of VQA")
        correct = {item.id: vqa_accuracy(str(predictions[item.id]), item.target["answers"]) for item in items}
        return accuracy_table(correct, {"answer_type": {item.id: [item.target["type"]] for item in items}})


def _parquet_rows(folder: Path, split: str) -> Iterator[_Row]:
    image = CellImages()
    needed = ("question_id", "question", "answers", "answer_type", "image")
    for row in read_parquet(parquet_files(folder, f"{ON_HUB[split]}-*.parquet"), needed):
        shown = image(row["image"], f"{folder}, question {row['question_id']}")
        yield row, row if row["answers"] else None, shown


def _target(annotation: Mapping[str, Any] | None) -> dict[str, Any]:
    if annotation is None:
        return {}
    return {
        "answers": [written(given["answer"]) for given in annotation["answers"]],
        "type": written(annotation["answer_type"]),
    }
