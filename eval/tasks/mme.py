"""MME: two yes-no questions on each image, 14 tasks in all. Fu et al., arXiv 2306.13394."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from ...common.json_files import enumerate_lines, read_text
from .. import Graded, HubData, ImageSource, Item, Score, ScoringContext, Task, register
from ..data.files import image_folder, image_rows
from ..scorers.yes_no import MME_COGNITION, MME_PERCEPTION, MMERow, mme_answer, mme_scores

RELEASE = "MME_Benchmark_release_version"


@register
class Mme(Task):
    """The 2,374 questions of MME in the files of its evaluation tool, one for each task."""

    name = "mme"
    summary = "yes-no questions, 14 tasks (points: perception of 2000, cognition of 800)"
    splits = {"test": 2374}
    source = "MME's eval_tool (Your_Results/*.txt) and MME_Benchmark_release_version"
    hub = HubData("lmms-lab-encoder/MME", {"test": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions word for word; each ends in "Please answer yes or no." already."""
        if (found := self.need_file(root, *_names(MME_PERCEPTION[0]), "data")).name == "data":
            return _parquet_items(found)
        assert root is not None  # need_file refuses it
        tasks = {task: self.need_file(root, *_names(task)) for task in (*MME_PERCEPTION, *MME_COGNITION)}
        return [item for task, path in tasks.items() for item in _task_items(task, path, root)]

    def grade(self, item: Item, prediction: Any) -> Graded:
        answer = mme_answer(str(prediction))
        return Graded(None if answer == "other" else answer, float(answer == item.target["label"]))

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        """Points of perception, cognition and each task by MME's rule."""
        graded = {item.id: self.grade(item, predictions[item.id]) for item in items}
        rows = [
            MMERow(item.target["task"], item.target["image"], graded[item.id].parsed, item.target["label"])
            for item in items
        ]
        unparsed = sum(one.parsed is None for one in graded.values())
        return Score("perception", mme_scores(rows), unparsed, items=graded)


def _names(task: str) -> tuple[str, ...]:
    return f"{task}.txt", f"questions/{task}.txt", f"eval_tool/Your_Results/{task}.txt"


def _task_items(task: str, path: Path, root: Path) -> list[Item]:
    """The questions of one task: tab-separated lines of image, question, answer."""
    # In the release some tasks have a folder of images, and others have them next to their texts.
    images = image_folder(root, f"{RELEASE}/{task}/images", f"{RELEASE}/{task}", f"{task}/images", task)
    rows = []
    for number, line in enumerate_lines(read_text(path)):
        cells = line.rstrip("\r").split("\t")
        label = cells[2].strip().lower() if len(cells) > 2 else ""
        if label not in ("yes", "no"):
            raise UserError(f"{path}, line {number}: expected image, question and Yes or No, tab-separated")
        rows.append((task, cells[0], cells[1], label, images / cells[0]))
    return _pairs(rows, path)


def _parquet_items(folder: Path) -> list[Item]:
    rows = []
    for row in image_rows(folder, "test-*.parquet", ("question_id", "question", "answer", "category")):
        # The id is TASK/FILE, or the file alone; both questions on an image have the same.
        name = row["question_id"].rpartition("/")[2]
        rows.append((row["category"], name, row["question"], row["answer"].strip().lower(), *row.images))
    return _pairs(rows, folder)


def _pairs(rows: Sequence[tuple[str, str, str, str, ImageSource]], path: Path) -> list[Item]:
    """Items of rows (task, image's name, question, label, image). UserError unless images have two each."""
    items = []
    asked: Counter[tuple[str, str]] = Counter()
    for task, name, question, label, image in rows:
        target = {"task": task, "image": name, "label": label}
        items.append(Item(f"{task}/{name}/{asked[task, name]}", question, (image,), target))
        asked[task, name] += 1
    uneven = [(name, count) for (_, name), count in asked.items() if count != 2]
    if uneven:
        name, count = uneven[0]
        raise UserError(f"{path}: {name} has {count} questions; accuracy+ needs two for each image")
    return items
