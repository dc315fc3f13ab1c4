"""VQAv2: open questions on COCO images, ten human answers each. Goyal et al., arXiv 1612.00837."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import Graded, HubData, Item, Task, register
from ..data.files import Row, image_folder, image_rows, json_rows, parse_rows
from ..scorers.vqa_accuracy import vqa_accuracy, vqa_answer
from .prompts import as_text, short_answer

# split -> file of questions, file of annotations, folder of images
FILES = {
    "val": ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014"),
    "test-dev": ("v2_OpenEnded_mscoco_test-dev2015_questions.json", None, "test2015"),
    "test": ("v2_OpenEnded_mscoco_test2015_questions.json", None, "test2015"),
}
ON_HUB = {
    "val": "data/validation-*.parquet",
    "test-dev": "data/testdev-*.parquet",
    "test": "data/test-*.parquet",
}


@register
class VqaV2(Task):
    """Open questions; an answer scores by how many of ten people gave it."""

    name = "vqav2"
    summary = "open questions on COCO images (soft accuracy over ten people)"
    splits = {"val": 214354, "test-dev": 107394, "test": 447793}
    source = "visualqa.org/download.html; images: COCO"
    server = "the EvalAI challenge of VQA"
    hub = HubData("lmms-lab-encoder/VQAv2", {split: (pattern,) for split, pattern in ON_HUB.items()})

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, FILES[split][0], "data")
        if path.is_dir():
            needed = ("question_id", "question", "answers", "answer_type")
            return parse_rows(image_rows(path.parent, ON_HUB[split], needed), _item)
        return parse_rows(self._json_rows(path, split), _item)

    def _json_rows(self, path: Path, split: str) -> Iterator[Row]:
        """Questions with their images, and with answers where the split has annotations."""
        _, annotations, folder = FILES[split]
        known: dict[int, Row] = {}
        if annotations is not None:
            rows = json_rows(self.need_file(path.parent, annotations), "annotations")
            known = {row["question_id"]: row for row in rows}
        images = image_folder(path.parent, folder, "images")
        for row in json_rows(
            path, "questions", image=lambda row: images / f"COCO_{folder}_{row['image_id']:012}.jpg"
        ):
            if (annotation := known.get(row["question_id"])) is not None:
                row |= {name: annotation[name] for name in ("answers", "answer_type")}
            yield row

    def grade(self, item: Item, prediction: Any) -> Graded:
        text, people = str(prediction), item.target["answers"]
        return Graded(vqa_answer(text, people), vqa_accuracy(text, people))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        """The answer type: "yes/no", "number" or "other"."""
        return {"answer_type": [item.target["type"]]}


def _item(row: Row) -> Item:
    target: dict[str, Any] = {}
    if answers := row.get("answers"):
        target["answers"] = [as_text(given["answer"]) for given in answers]
        target["type"] = as_text(row["answer_type"])
    return Item(str(row["question_id"]), short_answer(row["question"]), row.images, target)
