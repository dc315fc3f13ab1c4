"""TextVQA: questions whose answer is read in the image. Singh et al., arXiv 1904.08920."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json
from .. import Graded, HubData, ImageSource, Item, Task, register
from ..data.files import field, image_folder, image_rows
from ..scorers.vqa_accuracy import evalai_answer, textvqa_accuracy
from .prompts import as_text, short_answer


@register
class TextVqa(Task):
    """Reading in images of OpenImages, without OCR tokens in the prompt."""

    name = "textvqa"
    summary = "reading text in images, no OCR hints (soft accuracy over ten people)"
    splits: ClassVar[Mapping[str, int | None]] = {"val": 5000, "test": 5734}
    source = "textvqa.org/dataset: TextVQA_0.5.1_*.json and the images"
    server = "the EvalAI challenge of TextVQA"
    hub = HubData(
        "lmms-lab-encoder/textvqa",
        {"val": ("data/validation-*.parquet",), "test": ("data/test-*.parquet",)},
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions with the request for a short answer."""
        path = self.need_file(root, f"TextVQA_0.5.1_{split}.json", "data")
        items = []
        for row, image in _parquet_rows(path, split) if path.is_dir() else _json_rows(path, split):
            answers = row.get("answers") or ()
            # The table of the hub fills the answers of test with empty texts.
            target = {"answers": [as_text(one) for one in answers]} if any(answers) else {}
            items.append(Item(str(row["question_id"]), short_answer(row["question"]), (image,), target))
        return items

    def grade(self, item: Item, prediction: Any) -> Graded:
        """Accuracy by EvalAI's normalisation."""
        text = str(prediction)
        return Graded(evalai_answer(text), textvqa_accuracy(text, item.target["answers"]))


def _json_rows(path: Path, split: str) -> Iterator[tuple[Mapping[str, Any], ImageSource]]:
    # The images of val are among those of train.
    images = image_folder(path.parent, "test_images" if split == "test" else "train_images", "images")
    for row in field(read_json(path), "data", path):
        yield row, images / f"{field(row, 'image_id', path)}.jpg"


def _parquet_rows(folder: Path, split: str) -> Iterator[tuple[Mapping[str, Any], ImageSource]]:
    name = "validation" if split == "val" else split
    return image_rows(folder, f"{name}-*.parquet", ("question_id", "question", "answers"))
