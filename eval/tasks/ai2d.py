"""AI2D: questions on school diagrams. Kembhavi et al., arXiv 1603.07396."""

from pathlib import Path
from typing import Any

from .. import Graded, HubData, Item, Task, register
from ..data.files import Row, image_from_base64, image_rows, parse_rows, read_tsv
from ..scorers.multiple_choice import LETTERS, letters_for, mmbench_option
from .prompts import option_letter

TSV = "AI2D_TEST.tsv"


@register
class Ai2d(Task):
    """Multiple choice on diagrams with labelled parts; options are read as by VLMEvalKit without judge."""

    name = "ai2d"
    summary = "multiple choice on school diagrams (accuracy)"
    splits = {"test": 3088}
    source = f"VLMEvalKit's {TSV}, or data/test-*.parquet of huggingface.co/datasets/lmms-lab-encoder/ai2d"
    hub = HubData("lmms-lab-encoder/ai2d", {"test": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, TSV, "data")
        if path.name == TSV:
            return parse_rows(read_tsv(path, ("index", "question", "A", "B", "answer", "image")), _tsv_item)
        rows = image_rows(path, "test-*.parquet", ("question", "options", "answer"))
        # The answer is the index of the correct option, from 0.
        return parse_rows(rows, lambda row: _item(row, row["options"], LETTERS[int(row["answer"])]))

    def grade(self, item: Item, prediction: Any) -> Graded:
        picked = mmbench_option(str(prediction), item.target["options"])
        return Graded(picked, float(picked == item.target["answer"]))


def _tsv_item(row: Row) -> Item:
    row.key = row["index"]
    row.images = (image_from_base64(row["image"], row.where),)
    return _item(row, [row[letter] for letter in LETTERS if row.get(letter)], row["answer"])


def _item(row: Row, texts: list[str], answer: str) -> Item:
    options = letters_for(texts)
    target = {"answer": answer, "options": options}
    return Item(row.key, option_letter(row["question"], options), row.images, target)
