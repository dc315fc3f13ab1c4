"""A task outside the package: `dualtoken eval run --include-path examples/colours --tasks colours …`"""

import json
from pathlib import Path

from dualtoken.eval import Graded, Item, Task, register


@register
class Colours(Task):
    """The colour of the only object in an image, named in one word."""

    name = "colours"
    summary = "the colour of one object"
    splits = {"test": 6}  # the number of items; None for any number
    generation = {"max_new_tokens": 8}

    def load(self, root: Path | None, split: str) -> list[Item]:
        """One question for each line of questions.jsonl."""
        file = self.need_file(root, "questions.jsonl")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        images = file.parent / "images"
        return [
            Item(str(number), row["question"], (images / row["image"],), {"answer": row["answer"]})
            for number, row in enumerate(rows)
        ]

    def grade(self, item: Item, prediction: str) -> Graded:
        """Equal to the key, after lower-casing and without a full stop."""
        word = prediction.strip().strip(".").lower()
        return Graded(word or None, float(word == item.target["answer"]))
