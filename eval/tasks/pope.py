"""POPE: is an object in the image? Li et al., arXiv 2305.10355."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json_lines
from ..data.files import CellImages, distinct, field, image_folder, parquet_files, read_parquet
from ..data.hub import HubData
from ..harness.registry import register
from ..harness.task import Benchmark, Item, Score
from ..scorers.yes_no import binary_scores, pope_answer, pope_says_either


@register
class Pope(Benchmark):
    """Yes-no questions about objects in COCO val2014 images, with three ways to choose absent objects."""

    name = "pope"
    summary = "object hallucination: yes-no questions on COCO images (F1)"
    splits: ClassVar[Mapping[str, int | None]] = {"adversarial": 3000, "popular": 3000, "random": 3000}
    source = "github.com/AoiDragon/POPE, output/coco; images: COCO val2014"
    hub = HubData(
        "lmms-lab-encoder/POPE",
        {split: (f"Full/{split}-*.parquet",) for split in ("adversarial", "popular", "random")},
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions word for word, as the official script asks them."""
        name = f"coco_pope_{split}.json"
        path = self.need_file(root, name, f"coco/{name}", f"output/coco/{name}", "Full")
        if path.is_dir():
            return distinct(_parquet_items(path, split), path)
        assert root is not None  # need_file refused it
        images = image_folder(root, "val2014", "images", "coco/val2014")
        items = [
            Item(
                id=str(field(row, "question_id", path)),
                prompt=field(row, "text", path),
                images=(images / field(row, "image", path),),
                target={"label": field(row, "label", path)},
            )
            for row in read_json_lines(path)
        ]
        return distinct(items, path)

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """The table of POPE, by whose rule every answer is a yes or a no.

        Answers with neither word are counted as unparsed; the rule takes them for yes.
        """
        texts = {item.id: str(predictions[item.id]) for item in items}
        answers = {key: pope_answer(text) for key, text in texts.items()}
        labels = {item.id: str(item.target["label"]) for item in items}
        neither = sum(not pope_says_either(text) for text in texts.values())
        notes = (
            (f"{neither} answers hold neither yes nor no and count as yes, as officially",) if neither else ()
        )
        return Score(
            headline="f1",
            metrics=binary_scores(list(answers.values()), list(labels.values())),
            unparsed=neither,
            notes=notes,
            correct={key: float(answer == labels[key]) for key, answer in answers.items()},
        )


def _parquet_items(folder: Path, split: str) -> list[Item]:
    needed = ("question_id", "question", "answer", "image")
    image = CellImages()
    return [
        Item(
            id=str(row["question_id"]),
            prompt=row["question"],
            images=(image(row["image"], f"{folder}, question {row['question_id']}"),),
            target={"label": row["answer"].strip().lower()},
        )
        for row in read_parquet(parquet_files(folder, f"{split}-*.parquet"), needed)
    ]
