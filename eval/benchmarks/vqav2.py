"""VQAv2: open questions on COCO images, ten human answers each. Goyal et al., arXiv 1612.00837."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..benchmark import Benchmark, Item, Score
from ..files import distinct, field, image_folder
from ..json_lines import read_json
from ..prompts import short_answer
from ..registry import register
from ..score_tables import accuracy_table, no_keys
from ..scorers.vqa_accuracy import vqa_accuracy

# split -> questions file, annotations file, image folder
FILES = {
    "val": ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014"),
    "test-dev": ("v2_OpenEnded_mscoco_test-dev2015_questions.json", None, "test2015"),
    "test": ("v2_OpenEnded_mscoco_test2015_questions.json", None, "test2015"),
}


@register
class VqaV2(Benchmark):
    """Open questions; an answer scores by how many of ten people gave it."""

    name = "vqav2"
    summary = "open questions on COCO images (soft accuracy over ten people)"
    splits: ClassVar[Mapping[str, int | None]] = {"val": 214354, "test-dev": 107394, "test": 447793}
    source = "visualqa.org/download.html; images: COCO"

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions with the request for a short answer."""
        questions, annotations, image_name = FILES[split]
        path = self.need_file(root, questions)
        assert root is not None  # need_file refused it
        known: dict[int, dict[str, Any]] = {}
        if annotations is not None:
            key_path = self.need_file(root, annotations)
            known = {row["question_id"]: row for row in field(read_json(key_path), "annotations", key_path)}
        images = image_folder(root, image_name, "images")
        items = []
        for row in field(read_json(path), "questions", path):
            number = field(row, "question_id", path)
            file = f"COCO_{image_name}_{field(row, 'image_id', path):012}.jpg"
            items.append(
                Item(str(number), short_answer(row["question"]), (images / file,), _target(known.get(number)))
            )
        return distinct(items, path)

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """Accuracy over all and of each answer type ("yes/no", "number", "other")."""
        if any("answers" not in item.target for item in items):
            return no_keys("test and test-dev", "the EvalAI challenge of VQA")
        correct = {item.id: vqa_accuracy(str(predictions[item.id]), item.target["answers"]) for item in items}
        return accuracy_table(correct, {"answer_type": {item.id: [item.target["type"]] for item in items}})


def _target(annotation: dict[str, Any] | None) -> dict[str, Any]:
    if annotation is None:
        return {}
    return {
        "answers": [given["answer"] for given in annotation["answers"]],
        "type": annotation["answer_type"],
    }
