"""SEED-Bench, the questions on images, in two ways that are two tasks. Li et al., arXiv 2307.16125."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json
from .. import Graded, HubData, ImageSource, Item, Task, register
from ..data.files import field, image_folder, image_rows
from ..scorers.multiple_choice import exact_letter, letters_for, likeliest
from .prompts import as_text, option_letter

COLUMNS = ("choice_a", "choice_b", "choice_c", "choice_d")


# question, name of its dimension, image
_Row = tuple[Mapping[str, Any], str, ImageSource]


@register
class SeedBench(Task):
    """The official way: the option whose text is the most likely answer of the model.

    The image questions (dimensions 1 to 9) in the file's order; the questions on videos are left out.
    """

    name = "seedbench"
    summary = "multiple choice by the likelihood of the options' texts, the official way"
    kind = "choose"
    splits: ClassVar[Mapping[str, int | None]] = {"image": 14233}
    source = "huggingface.co/datasets/AILab-CVC/SEED-Bench: SEED-Bench.json, SEED-Bench-image.zip"
    hub = HubData("lmms-lab-encoder/SEED-Bench", {"image": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """The questions as `ask` puts them."""
        path = self.need_file(root, "SEED-Bench.json", "data")
        items = []
        for row, dimension, image in _parquet_rows(path) if path.is_dir() else _json_rows(path):
            choices = tuple(as_text(field(row, column, path)) for column in COLUMNS)
            item = self.ask(as_text(row["question"]), choices)
            key, target = (
                str(field(row, "question_id", path)),
                {"answer": row["answer"], "dimension": dimension},
            )
            items.append(replace(item, id=key, images=(image,), target=target))
        return items

    def ask(self, question: str, choices: tuple[str, ...]) -> Item:
        """The prompt of the official interface; the options are not in it."""
        return Item("", f"Question: {question}\nAnswer:", choices=choices)

    def pick(self, prediction: Any) -> str | None:
        """The option of the greatest log-likelihood."""
        return likeliest(prediction)

    def grade(self, item: Item, prediction: Any) -> Graded:
        """The option picked."""
        picked = self.pick(prediction)
        return Graded(picked, float(picked == item.target["answer"]))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        """The dimension; accuracy is over all image questions, not the mean of the dimensions."""
        return {"dimension": [item.target["dimension"]]}


@register
class SeedBenchLetter(SeedBench):
    """The way of LLaVA-1.5 and its successors: the model reads the options and writes a letter."""

    name = "seedbench-letter"
    summary = "multiple choice by the letter written; not comparable with seedbench"
    kind = "answer"

    def ask(self, question: str, choices: tuple[str, ...]) -> Item:
        """Question, options and the request for a letter."""
        return Item("", option_letter(question, letters_for(choices)))

    def pick(self, prediction: Any) -> str | None:
        """The answer if it is one letter and nothing else."""
        return exact_letter(str(prediction))


def _json_rows(path: Path) -> Iterator[_Row]:
    images = image_folder(path.parent, "SEED-Bench-image", "images")
    content = read_json(path)
    names = {number: name for name, number in content.get("question_type", {}).items()}
    for row in field(content, "questions", path):
        if field(row, "data_type", path) == "image":
            kind = field(row, "question_type_id", path)
            yield row, names.get(kind, str(kind)), images / row["data_id"]


def _parquet_rows(folder: Path) -> Iterator[_Row]:
    """The table numbers the dimensions and does not name them; its images are lists, of frames for videos."""
    needed = ("question_id", "question", *COLUMNS, "answer", "data_type", "question_type_id")
    for row, image in image_rows(folder, "test-*.parquet", needed):
        if row["data_type"] == "image":
            yield row, str(row["question_type_id"]), image
