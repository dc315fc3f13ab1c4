"""AI2D: questions on school diagrams. Kembhavi et al., arXiv 1603.07396."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from .. import Graded, HubData, ImageSource, Item, Task, register
from ..data.files import image_from_base64, image_rows, read_tsv
from ..scorers.multiple_choice import LETTERS, letters_for, mmbench_option
from .prompts import option_letter

TSV = "AI2D_TEST.tsv"

# id, question, options, letter of the answer, image
_Row = tuple[str, str, list[str], str, ImageSource]


@register
class Ai2d(Task):
    """Multiple choice on diagrams whose parts carry their names."""

    name = "ai2d"
    summary = "multiple choice on school diagrams (accuracy)"
    splits: ClassVar[Mapping[str, int | None]] = {"test": 3088}
    source = f"VLMEvalKit's {TSV}, or data/test-*.parquet of huggingface.co/datasets/lmms-lab-encoder/ai2d"
    hub = HubData("lmms-lab-encoder/ai2d", {"test": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Question, options and the request for a letter."""
        path = self.need_file(root, TSV, "data")
        items = []
        for key, question, texts, answer, image in _tsv(path) if path.name == TSV else _parquet(path):
            options = letters_for(texts)
            target = {"answer": answer, "options": options}
            items.append(Item(key, option_letter(question, options), (image,), target))
        return items

    def grade(self, item: Item, prediction: Any) -> Graded:
        """The option, read as VLMEvalKit does without a judge."""
        picked = mmbench_option(str(prediction), item.target["options"])
        return Graded(picked, float(picked == item.target["answer"]))


def _tsv(path: Path) -> Iterator[_Row]:
    for row in read_tsv(path, ("index", "question", "A", "B", "answer", "image")):
        options = [row[letter] for letter in LETTERS if row.get(letter)]
        image = image_from_base64(row["image"], f"{path}, index {row['index']}")
        yield row["index"], row["question"], options, row["answer"], image


def _parquet(folder: Path) -> Iterator[_Row]:
    rows = image_rows(folder, "test-*.parquet", ("question", "options", "answer"))
    for number, (row, image) in enumerate(rows):
        # The answer is the index of the right option, from 0.
        yield str(number), row["question"], list(row["options"]), LETTERS[int(row["answer"])], image
