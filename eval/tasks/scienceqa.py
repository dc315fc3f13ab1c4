"""ScienceQA: school questions, half of them with an image. Lu et al., arXiv 2209.09513."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.json_files import read_json
from .. import Graded, HubData, Item, Task, register
from ..data.files import Row, image_folder, image_rows, parse_rows
from ..scorers.multiple_choice import LETTERS, letters_for, scienceqa_option
from .prompts import OPTION_LETTER, as_text

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
YOUNGEST_OF_UPPER_GRADES = 7
ON_HUB = "ScienceQA-FULL"
TABLES = dict.fromkeys(("test", "test-image"), f"{ON_HUB}/test-*.parquet")
TABLES |= dict.fromkeys(("val", "val-image"), f"{ON_HUB}/validation-*.parquet")


@register
class ScienceQa(Task):
    """Multiple choice with an optional image and hint; "-image" splits hold the questions with an image."""

    name = "scienceqa"
    summary = "school questions, multiple choice (accuracy; -image splits are the SQA-I of tables)"
    splits = {"test": 4241, "test-image": 2017, "val": 4241, "val-image": 2097}
    generation = {"max_new_tokens": 64}
    source = "github.com/lupantech/ScienceQA, data/scienceqa and its images"
    hub = HubData("lmms-lab-encoder/ScienceQA", {split: (table,) for split, table in TABLES.items()})

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "problems.json", ON_HUB)
        name, _, only_images = split.partition("-")
        if path.is_dir():  # the tables have no ids; a problem's id is its number
            needed = ("question", "choices", "answer", "hint", "grade", "subject")
            rows = image_rows(path.parent, TABLES[split], needed, optional=True)
        else:
            rows = self._json_rows(path, name)
        return parse_rows((row for row in rows if row.images or not only_images), _item)

    def _json_rows(self, path: Path, name: str) -> Iterator[Row]:
        order = self.need_file(path.parent, "pid_splits.json")
        problems = Row(read_json(path), str(path))
        images = image_folder(path.parent, f"images/{name}", name)
        for key in Row(read_json(order), str(order))[name]:
            row = Row(problems[key], f"{path}, problem {key}", key)
            if row.get("image"):
                row.images = (images / key / row["image"],)
            yield row

    def grade(self, item: Item, prediction: Any) -> Graded:
        picked = scienceqa_option(str(prediction), item.target["choices"])
        return Graded(picked, float(picked == item.target["answer"]))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        """The columns of the official table."""
        return {name: item.target[name] for name in ("subject", "context", "grade")}


def scienceqa_prompt(problem: Mapping[str, Any]) -> str:
    """The official zero-shot format QCM (question, context, options), and the request for a letter.

    The context is "N/A" without a hint; options are in one line; double blanks become single.
    """
    lettered = letters_for(problem["choices"]).items()
    options = " ".join(f"({letter}) {as_text(text)}" for letter, text in lettered)
    context = problem["hint"].strip() or "N/A"
    question = f"Question: {as_text(problem['question'])}"
    return f"{question}\nContext: {context}\nOptions: {options}\n{OPTION_LETTER}".replace("  ", " ").strip()


def _item(row: Row) -> Item:
    grade = int(row["grade"].removeprefix("grade"))
    contexts = {"TXT": bool(row["hint"]), "IMG": bool(row.images)}
    target = {
        "answer": LETTERS[row["answer"]],
        "choices": len(row["choices"]),
        "subject": [SUBJECTS.get(row["subject"], row["subject"])],
        "context": [name for name, there in contexts.items() if there] or ["NO"],
        "grade": ["G7-12" if grade >= YOUNGEST_OF_UPPER_GRADES else "G1-6"],
    }
    return Item(row.key, scienceqa_prompt(row), row.images, target)
