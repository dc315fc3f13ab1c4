"""MMMU: college questions of 30 subjects, multiple choice and open. Yue et al., arXiv 2311.16502."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from .. import Graded, HubData, Item, Score, ScoringContext, Task, register
from ..data.files import Row, image_from_cell, parquet_files, parse_rows, read_parquet
from ..scorers.averages import percent
from ..scorers.mmmu_open import open_candidates, open_is_right
from ..scorers.multiple_choice import letters_for, mmmu_option
from .prompts import OPTION_LETTER, SHORT_ANSWER

DISCIPLINES = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine "
    "Pharmacy Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics "
    "Energy_and_Power Materials Mechanical_Engineering",
}
DISCIPLINE_OF = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects.split()}
MOST_IMAGES = 7
NEEDED = ("id", "question", "options", "answer", "question_type", "image_1")


@register
class Mmmu(Task):
    """Questions with one to seven images; the text names them as <image 1> and so on."""

    name = "mmmu"
    summary = "college questions of 30 subjects, multiple choice and open (accuracy)"
    splits = {"validation": 900, "dev": 150, "test": 10500}
    generation = {"max_new_tokens": 128}
    source = "huggingface.co/datasets/MMMU/MMMU, its folder of each subject"
    server = "the EvalAI challenge of MMMU"
    hub = HubData("MMMU/MMMU", {split: (f"*/{split}-*.parquet",) for split in ("validation", "dev", "test")})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Subjects in alphabetical order, with the prompt of the official configuration for LLaVA-1.5."""
        items = []
        for subject in sorted(DISCIPLINE_OF):
            files = parquet_files(self.need_file(root, subject), f"{split}-*.parquet")
            items += parse_rows(read_parquet(files, NEEDED), partial(_item, subject=subject))
        return items

    def has_answer(self, item: Item) -> bool:
        """The table has "?" where the answer is not public."""
        return item.target["answer"] not in ("", "?")

    def grade(self, item: Item, prediction: Any) -> Graded:
        """The letter of an option; for an open answer the candidates that are compared with the key."""
        answer, key, options = str(prediction), item.target["answer"], item.target["options"]
        if not options:
            return Graded(open_candidates(answer), float(open_is_right(answer, key)))
        letter = mmmu_option(answer, options)
        keys = [key] if isinstance(key, str) else key
        return Graded(letter, float(letter is not None and letter in keys))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        subject = item.target["subject"]
        return {"discipline": [DISCIPLINE_OF[subject]], "subject": [subject]}

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        """Accuracy over all questions, by discipline and by subject.

        The official script picks a random option where an answer names none. Here such answers are incorrect,
        and "accuracy_random_expected" is the expected value of the official score.
        """
        table = super().score(items, predictions, context)
        if self.is_hidden(items):
            return table
        expected = percent(_expected(item, table.items[item.id]) for item in items)
        return replace(table, metrics={**table.metrics, "accuracy_random_expected": expected})


def _expected(item: Item, graded: Graded) -> float:
    """The expected score of an item if an answer without a letter picks a random option."""
    return 1 / len(item.target["options"]) if graded.parsed is None else graded.score or 0.0


def _literal_list(text: str, where: str) -> list[str]:
    """A list that the dataset holds as Python source."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{where}: expected a list in Python's notation, not {text[:60]!r}") from error
    return [str(entry) for entry in value]


def _item(row: Row, subject: str) -> Item:
    cells = [row.get(f"image_{number}") for number in range(1, MOST_IMAGES + 1)]
    images = tuple(image_from_cell(cell, row.where) for cell in cells if cell is not None)
    options: dict[str, str] = {}
    if row["question_type"] == "multiple-choice":
        options = letters_for(_literal_list(row["options"], row.where))
    answer: str | list[str] = row.get("answer") or ""
    if isinstance(answer, str) and answer.startswith("[") and not options:
        answer = _literal_list(answer, row.where)
    target = {"answer": answer, "options": options, "subject": subject}
    return Item(row["id"], mmmu_prompt(row["question"], options), images, target)


def mmmu_prompt(question: str, options: Mapping[str, str]) -> str:
    """The official prompt; multiple choice has an empty line after the options."""
    if not options:
        return f"{question}\n{SHORT_ANSWER}"
    lines = "".join(f"({letter}) {text}\n" for letter, text in options.items())
    return f"{question}\n{lines}\n{OPTION_LETTER}"
