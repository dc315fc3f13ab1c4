"""SEED-Bench, the questions on images, in two ways that are two tasks. Li et al., arXiv 2307.16125."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json
from .. import Graded, HubData, ImageSource, Item, Task, register
from ..data.files import distinct, field, image_folder, image_rows
from ..scorers.multiple_choice import exact_letter, letters_for, likeliest
from .prompts import as_text, option_letter

COLUMNS = ("choice_a", "choice_b", "choice_c", "choice_d")


class _SeedBench(Task):
    """What both ways share: the file, its image questions (dimensions 1 to 9) and the table."""

    splits: ClassVar[Mapping[str, int | None]] = {"image": 14233}
    source = "huggingface.co/datasets/AILab-CVC/SEED-Bench: SEED-Bench.json, SEED-Bench-image.zip"
    hub = HubData("lmms-lab-encoder/SEED-Bench", {"image": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """The image questions in the file's order; the questions on videos are left out."""
        path = self.need_file(root, "SEED-Bench.json", "data")
        items = [
            self.make_item(
                str(field(row, "question_id", path)),
                as_text(row["question"]),
                tuple(as_text(field(row, column, path)) for column in COLUMNS),
                image,
                {"answer": row["answer"], "dimension": dimension},
            )
            for row, dimension, image in (_parquet_rows(path) if path.is_dir() else _json_rows(path))
        ]
        return distinct(items, path)

    @abstractmethod
    def make_item(
        self, key: str, question: str, choices: tuple[str, ...], image: ImageSource, target: Mapping[str, Any]
    ) -> Item:
        """One question, in the form in which this way asks it."""

    @abstractmethod
    def pick(self, prediction: Any) -> str | None:
        """The option a prediction picks."""

    def grade(self, item: Item, prediction: Any) -> Graded:
        """The option picked."""
        picked = self.pick(prediction)
        return Graded(picked, float(picked == item.target["answer"]))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        """The dimension; accuracy is over all image questions, not the mean of the dimensions."""
        return {"dimension": [item.target["dimension"]]}


# question, name of its dimension, image
_Row = tuple[Mapping[str, Any], str, ImageSource]


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


@register
class SeedBenchLikelihood(_SeedBench):
    """The official way: the option whose text is the most likely answer of the model."""

    name = "seedbench"
    summary = "multiple choice by the likelihood of the options' texts, the official way"
    kind = "choose"

    def make_item(
        self, key: str, question: str, choices: tuple[str, ...], image: ImageSource, target: Mapping[str, Any]
    ) -> Item:
        """The prompt of the official interface; the options are not in it."""
        return Item(key, f"Question: {question}\nAnswer:", (image,), target, choices)

    def pick(self, prediction: Any) -> str | None:
        """The option of the greatest log-likelihood."""
        return likeliest(prediction)


@register
class SeedBenchLetter(_SeedBench):
    """The way of LLaVA-1.5 and its successors: the model reads the options and writes a letter."""

    name = "seedbench-letter"
    summary = "multiple choice by the letter written; not comparable with seedbench"

    def make_item(
        self, key: str, question: str, choices: tuple[str, ...], image: ImageSource, target: Mapping[str, Any]
    ) -> Item:
        """Question, options and the request for a letter."""
        return Item(key, option_letter(question, letters_for(choices)), (image,), target)

    def pick(self, prediction: Any) -> str | None:
        """The answer if it is one letter and nothing else."""
        return exact_letter(str(prediction))
