"""SEED-Bench, the questions on images, asked in two ways as two tasks. Li et al., arXiv 2307.16125."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.json_files import read_json
from .. import Graded, HubData, Item, Task, register
from ..data.files import Row, image_folder, image_rows, json_rows, parse_rows
from ..scorers.multiple_choice import exact_letter, letters_for, likeliest
from .prompts import as_text, option_letter

COLUMNS = ("choice_a", "choice_b", "choice_c", "choice_d")


@register
class SeedBench(Task):
    """The official way: the option whose text is the most likely answer of the model.

    The image questions (dimensions 1 to 9) in the file's order; the questions on videos are left out.
    """

    name = "seedbench"
    summary = "multiple choice by the likelihood of the options' texts, the official way"
    kind = "choose"
    splits = {"image": 14233}
    source = "huggingface.co/datasets/AILab-CVC/SEED-Bench: SEED-Bench.json, SEED-Bench-image.zip"
    hub = HubData("lmms-lab-encoder/SEED-Bench", {"image": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "SEED-Bench.json", "data")
        names: dict[int, str] = {}  # of dimensions; the table of the hub has their numbers only
        if path.is_dir():
            needed = ("question_id", "question", *COLUMNS, "answer", "data_type", "question_type_id")
            rows = image_rows(path, "test-*.parquet", needed)
        else:
            rows = json_rows(path, "questions")
            names = {number: name for name, number in read_json(path).get("question_type", {}).items()}
        images = image_folder(path.parent, "SEED-Bench-image", "images")

        def item(row: Row) -> Item:
            kind = row["question_type_id"]
            return Item(
                id=str(row["question_id"]),
                images=row.images or (images / row["data_id"],),
                target={"answer": row["answer"], "dimension": names.get(kind, str(kind))},
                **self.ask(as_text(row["question"]), [as_text(row[column]) for column in COLUMNS]),
            )

        return parse_rows((row for row in rows if row["data_type"] == "image"), item)

    def ask(self, question: str, choices: Sequence[str]) -> dict[str, Any]:
        """The prompt of the official interface, without the options, and the choices to compare."""
        return {"prompt": f"Question: {question}\nAnswer:", "choices": tuple(choices)}

    def pick(self, prediction: Any) -> str | None:
        return likeliest(prediction)

    def grade(self, item: Item, prediction: Any) -> Graded:
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

    def ask(self, question: str, choices: Sequence[str]) -> dict[str, Any]:
        """Question, options and the request for a letter."""
        return {"prompt": option_letter(question, letters_for(choices))}

    def pick(self, prediction: Any) -> str | None:
        return exact_letter(str(prediction))
