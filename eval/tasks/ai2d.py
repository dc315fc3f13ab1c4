"""AI2D: questions on school diagrams. Kembhavi et al., arXiv 1603.07396."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..data.files import distinct, image_from_base64, image_from_cell, parquet_files, read_parquet, read_tsv
from ..data.hub import HubData
from ..harness.registry import register
from ..harness.score_tables import choice_table
from ..harness.task import Benchmark, ImageSource, Item, Score
from ..scorers.multiple_choice import LETTERS, letters_for, mmbench_option
from .prompts import option_letter

TSV = "AI2D_TEST.tsv"


@register
class Ai2d(Benchmark):
    """Multiple choice on diagrams whose parts carry their names."""

    name = "ai2d"
    summary = "multiple choice on school diagrams (accuracy)"
    splits: ClassVar[Mapping[str, int | None]] = {"test": 3088}
    source = f"VLMEvalKit's {TSV}, or data/test-*.parquet of huggingface.co/datasets/lmms-lab-encoder/ai2d"
    hub = HubData("lmms-lab-encoder/ai2d", {"test": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Question, options and the request for a letter."""
        path = self.need_file(root, TSV, "data")
        rows = _tsv_rows(path) if path.name == TSV else _parquet_rows(path)
        items = [
            Item(
                key,
                option_letter(question, letters_for(options)),
                (image,),
                {"answer": answer, "options": letters_for(options)},
            )
            for key, question, options, answer, image in rows
        ]
        return distinct(items, path)

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """Accuracy, options read as VLMEvalKit does without a judge."""
        picked = {
            item.id: mmbench_option(str(predictions[item.id]), item.target["options"]) for item in items
        }
        return choice_table(picked, {item.id: item.target["answer"] for item in items})


# id, question, options, letter of the answer, image
_Row = tuple[str, str, list[str], str, ImageSource]


def _tsv_rows(path: Path) -> Iterator[_Row]:
    for row in read_tsv(path, ("index", "question", "A", "B", "answer", "image")):
        options = [row[letter] for letter in LETTERS if row.get(letter)]
        image = image_from_base64(row["image"], f"{path}, index {row['index']}")
        yield row["index"], row["question"], options, row["answer"], image


def _parquet_rows(folder: Path) -> Iterator[_Row]:
    rows = read_parquet(parquet_files(folder, "test-*.parquet"), ("question", "options", "answer", "image"))
    for number, row in enumerate(rows):
        image = image_from_cell(row["image"], f"{folder}, row {number}")
        # The answer is the place of the right option, counted from 0.
        yield str(number), row["question"], list(row["options"]), LETTERS[int(row["answer"])], image
