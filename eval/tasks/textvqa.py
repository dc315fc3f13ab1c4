"""TextVQA: questions whose answer is read in the image. Singh et al., arXiv 1904.08920."""

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
from ..scorers.vqa_accuracy import textvqa_accuracy
from .prompts import short_answer, written


@register
class TextVqa(Benchmark):
    """Reading in images of OpenImages, without OCR tokens in the prompt."""

    name = "textvqa"
    summary = "reading text in images, no OCR hints (soft accuracy over ten people)"
    splits: ClassVar[Mapping[str, int | None]] = {"val": 5000, "test": 5734}
    source = "textvqa.org/dataset: TextVQA_0.5.1_*.json and the images"
    hub = HubData(
        "lmms-lab-encoder/textvqa",
        {"val": ("data/validation-*.parquet",), "test": ("data/test-*.parquet",)},
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions with the request for a short answer."""
        path = self.need_file(root, f"TextVQA_0.5.1_{split}.json", "data")
        items = []
        for row, image in _parquet_rows(path, split) if path.is_dir() else _json_rows(path, split):
            # The table of the hub fills the answers of test with empty texts.
            target = (
                {"answers": [written(one) for one in row["answers"]]} if any(row.get("answers") or ()) else {}
            )
            items.append(Item(str(row["question_id"]), short_answer(row["question"]), (image,), target))
        return distinct(items, path)

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """Accuracy by EvalAI's normalisation."""
        if any("answers" not in item.target for item in items):
            return no_keys("test", "the EvalAI challenge of TextVQA")
        return accuracy_table(
            {item.id: textvqa_accuracy(str(predictions[item.id]), item.target["answers"]) for item in items}
        )


def _json_rows(path: Path, split: str) -> Iterator[tuple[Mapping[str, Any], ImageSource]]:
    # The images of val are among those of train.
    images = image_folder(path.parent, "test_images" if split == "test" else "train_images", "images")
    for row in field(read_json(path), "data", path):
        yield row, images / f"{field(row, 'image_id', path)}.jpg"


def _parquet_rows(folder: Path, split: str) -> Iterator[tuple[Mapping[str, Any], ImageSource]]:
    name = "validation" if split == "val" else split
    image = CellImages()
    for row in read_parquet(
        parquet_files(folder, f"{name}-*.parquet"), ("question_id", "question", "answers", "image")
    ):
        yield row, image(row["image"], f"{folder}, question {row['question_id']}")
