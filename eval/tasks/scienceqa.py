"""ScienceQA: school questions, half of them with an image. Lu et al., arXiv 2209.09513."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json
from .. import Graded, HubData, ImageSource, Item, Task, register
from ..data.files import field, image_folder, image_rows
from ..scorers.multiple_choice import LETTERS, letters_for, scienceqa_option
from .prompts import OPTION_LETTER, as_text

SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
YOUNGEST_OF_UPPER_GRADES = 7
ON_HUB = "ScienceQA-FULL"

# id, problem, image
_Row = tuple[str, Mapping[str, Any], ImageSource | None]


@register
class ScienceQa(Task):
    """Multiple choice with an optional image and hint; "-image" splits hold the questions with an image."""

    name = "scienceqa"
    summary = "school questions, multiple choice (accuracy; -image splits are the SQA-I of tables)"
    splits: ClassVar[Mapping[str, int | None]] = {
        "test": 4241,
        "test-image": 2017,
        "val": 4241,
        "val-image": 2097,
    }
    generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 64}
    source = "github.com/lupantech/ScienceQA, data/scienceqa and its images"
    hub = HubData(
        "lmms-lab-encoder/ScienceQA",
        {
            split: (f"{ON_HUB}/{name}-*.parquet",)
            for name, splits_of in (("test", ("test", "test-image")), ("validation", ("val", "val-image")))
            for split in splits_of
        },
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        """The official zero-shot format QCM (question, context, options) with the request for a letter."""
        path = self.need_file(root, "problems.json", ON_HUB)
        name, _, only_images = split.partition("-")
        rows = _parquet_rows(path, name) if path.is_dir() else self._json_rows(path, name)
        items = [
            Item(key, scienceqa_prompt(problem), () if image is None else (image,), _target(problem))
            for key, problem, image in rows
            if image is not None or not only_images
        ]
        return items

    def _json_rows(self, path: Path, name: str) -> Iterator[_Row]:
        order = field(read_json(self.need_file(path.parent, "pid_splits.json")), name, path)
        problems = read_json(path)
        images = image_folder(path.parent, f"images/{name}", name)
        for key in order:
            problem = field(problems, key, path)
            yield key, problem, images / key / problem["image"] if problem["image"] else None

    def grade(self, item: Item, prediction: Any) -> Graded:
        """The letter of an option."""
        picked = scienceqa_option(str(prediction), item.target["choices"])
        return Graded(picked, float(picked == item.target["answer"]))

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        """The columns of the official table."""
        return {name: item.target[name] for name in ("subject", "context", "grade")}


def _parquet_rows(folder: Path, name: str) -> Iterator[_Row]:
    """The table has no ids; a problem's is its row."""
    needed = ("question", "choices", "answer", "hint", "grade", "subject")
    pattern = f"{'validation' if name == 'val' else name}-*.parquet"
    for number, (row, image) in enumerate(image_rows(folder, pattern, needed, optional=True)):
        yield str(number), row, image


def scienceqa_prompt(problem: Mapping[str, Any]) -> str:
    """Question, context ("N/A" without a hint) and options in one line, with double blanks made single."""
    lettered = letters_for(problem["choices"]).items()
    options = " ".join(f"({letter}) {as_text(text)}" for letter, text in lettered)
    context = problem["hint"].strip() or "N/A"
    text = (
        f"Question: {as_text(problem['question'])}\nContext: {context}\nOptions: {options}\n{OPTION_LETTER}"
    )
    return text.replace("  ", " ").strip()


def _target(problem: Mapping[str, Any]) -> dict[str, Any]:
    grade = int(problem["grade"].removeprefix("grade"))
    contexts = {"TXT": bool(problem["hint"]), "IMG": bool(problem["image"])}
    return {
        "answer": LETTERS[problem["answer"]],
        "choices": len(problem["choices"]),
        "subject": [SUBJECTS.get(problem["subject"], problem["subject"])],
        "context": [name for name, there in contexts.items() if there] or ["NO"],
        "grade": ["G7-12" if grade >= YOUNGEST_OF_UPPER_GRADES else "G1-6"],
    }
