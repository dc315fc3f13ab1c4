"""MME: two yes-no questions on each image, 14 tasks in all. Fu et al., arXiv 2306.13394."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...tokenizer.errors import UserError
from ..benchmark import Benchmark, Item, Score
from ..files import distinct, image_folder
from ..registry import register
from ..scorers.yes_no import MME_COGNITION, MME_PERCEPTION, MMERow, mme_answer, mme_scores

RELEASE = "MME_Benchmark_release_version"


@register
class Mme(Benchmark):
    """The 2,374 questions of MME in the files of its evaluation tool, one for each task."""

    name = "mme"
    summary = "yes-no questions, 14 tasks (points: perception of 2000, cognition of 800)"
    splits: ClassVar[Mapping[str, int | None]] = {"test": 2374}
    source = "MME's eval_tool (Your_Results/*.txt) and MME_Benchmark_release_version"

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions word for word; each ends in "Please answer yes or no." already."""
        items: list[Item] = []
        for task in (*MME_PERCEPTION, *MME_COGNITION):
            name = f"{task}.txt"
            path = self.need_file(root, name, f"questions/{name}", f"eval_tool/Your_Results/{name}")
            assert root is not None  # need_file refused it
            items.extend(_task_items(task, path, root))
        return distinct(items, path.parent)

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """Points of perception, cognition and each task by MME's rule."""
        answers = {item.id: mme_answer(str(predictions[item.id])) for item in items}
        rows = [
            MMERow(item.target["task"], item.target["image"], answers[item.id], item.target["label"])
            for item in items
        ]
        return Score(
            headline="perception",
            metrics=mme_scores(rows),
            unparsed=sum(answer == "other" for answer in answers.values()),
            correct={item.id: float(answers[item.id] == item.target["label"]) for item in items},
        )


def _task_items(task: str, path: Path, root: Path) -> list[Item]:
    """The questions of one task: lines of image, question, answer, parted by tabs."""
    # The release keeps the images of some tasks in a folder of their own, and those of others beside the
    # texts.
    images = image_folder(root, f"{RELEASE}/{task}/images", f"{RELEASE}/{task}", f"{task}/images", task)
    items = []
    asked: Counter[str] = Counter()
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        label = cells[2].strip().lower() if len(cells) > 2 else ""
        if label not in ("yes", "no"):
            raise UserError(f"{path}, line {number}: expected image, question and Yes or No parted by tabs")
        image, question = cells[0], cells[1]
        items.append(
            Item(
                id=f"{task}/{image}/{asked[image]}",
                prompt=question,
                images=(images / image,),
                target={"task": task, "image": image, "label": label},
            )
        )
        asked[image] += 1
    uneven = [image for image, count in asked.items() if count != 2]
    if uneven:
        raise UserError(
            f"{path}: {uneven[0]} has {asked[uneven[0]]} questions; accuracy+ needs two for each image"
        )
    return items
