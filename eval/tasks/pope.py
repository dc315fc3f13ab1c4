"""POPE: is an object in the image? Li et al., arXiv 2305.10355."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import Graded, HubData, Item, Score, ScoringContext, Task, register
from ..data.files import image_folder, image_rows, json_line_rows, parse_rows
from ..scorers.yes_no import binary_scores, pope_answer, pope_says_either

SPLITS = ("adversarial", "popular", "random")


@register
class Pope(Task):
    """Yes-no questions about objects in COCO val2014 images, with three ways to choose absent objects."""

    name = "pope"
    summary = "object hallucination: yes-no questions on COCO images (F1)"
    splits = dict.fromkeys(SPLITS, 3000)
    source = "github.com/AoiDragon/POPE, output/coco; images: COCO val2014"
    hub = HubData("lmms-lab-encoder/POPE", {split: (f"Full/{split}-*.parquet",) for split in SPLITS})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions word for word, as the official script asks them."""
        name = f"coco_pope_{split}.json"
        path = self.need_file(root, name, f"coco/{name}", f"output/coco/{name}", "Full")
        if path.is_dir():
            table = image_rows(path, f"{split}-*.parquet", ("question_id", "question", "answer"))
            return [
                Item(
                    id=str(row["question_id"]),
                    prompt=row["question"],
                    images=row.images,
                    target={"label": row["answer"].strip().lower()},
                )
                for row in table
            ]
        assert root is not None  # need_file refuses it
        images = image_folder(root, "val2014", "images", "coco/val2014")
        return parse_rows(
            json_line_rows(path),
            lambda row: Item(
                id=str(row["question_id"]),
                prompt=row["text"],
                images=(images / row["image"],),
                target={"label": row["label"]},
            ),
        )

    def grade(self, item: Item, prediction: Any) -> Graded:
        """Every answer is a yes or a no by the rule; one without either word is unparsed, and a yes."""
        answer = pope_answer(str(prediction))
        parsed = answer if pope_says_either(str(prediction)) else None
        return Graded(parsed, float(answer == str(item.target["label"])))

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        graded = {item.id: self.grade(item, predictions[item.id]) for item in items}
        unparsed = sum(one.parsed is None for one in graded.values())
        note = f"{unparsed} answers hold neither yes nor no and count as yes, following the official rule"
        answers = [pope_answer(str(predictions[item.id])) for item in items]
        metrics = binary_scores(answers, [str(item.target["label"]) for item in items])
        return Score("f1", metrics, unparsed, (note,) if unparsed else (), graded)
