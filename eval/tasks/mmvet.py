"""MM-Vet: open questions that need several capabilities at once. Yu et al., arXiv 2308.02490."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.errors import UserError
from ...common.json_files import read_json
from .. import Graded, HubData, ImageSource, Item, JudgedTask, Score, ScoringContext, register
from ..data.files import field, image_folder, image_rows
from ..scorers.averages import mean
from ..scorers.mmvet import SECOND_REQUEST, grade_in, grading_prompt, mmvet_scores


@register
class MMVet(JudgedTask):
    """Free answers that GPT-4 grades from 0 to 1 in the official evaluator."""

    name = "mmvet"
    summary = "open questions of several capabilities (needs a judge)"
    splits: ClassVar[Mapping[str, int | None]] = {"test": 218}
    generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 512}
    judge_tokens = 8  # the official number is 3 of GPT-4's; other vocabularies need more for "0.5"
    source = "github.com/yuweihao/MM-Vet, mm-vet.zip"
    hub = HubData("lmms-lab-encoder/MMVet", {"test": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions word for word."""
        path = self.need_file(root, "mm-vet.json", "data")
        items = [
            Item(
                key,
                field(row, "question", path),
                (image,),
                {"answer": row["answer"], "capabilities": _capabilities(row)},
            )
            for key, row, image in (_parquet_rows(path) if path.is_dir() else _json_rows(path))
        ]
        return items

    def judge_prompts(self, items: Sequence[Item], predictions: Mapping[str, Any]) -> dict[str, str]:
        """The official request for a grade, for every item."""
        return {
            item.id: grading_prompt(item.prompt, item.target["answer"], str(predictions[item.id]))
            for item in items
        }

    def second_prompt(self, prompt: str) -> str:
        """The official second request."""
        return prompt + SECOND_REQUEST

    def read_reply(self, reply: str) -> dict[str, Any] | None:
        """One run's grade."""
        grade = grade_in(reply)
        return None if grade is None else {"score": [grade]}

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        """The total and each capability from mmvet-judge.json, the grade file of the official evaluator.

        Without the file, or with grades missing, every metric is None and the reason is in the notes.
        """
        verdicts, ids = context.verdicts, [item.id for item in items]
        reason = verdicts.why_incomplete(ids, "score")
        if reason is not None:
            rows = verdicts.rows or {}
            silent = sum(key in rows and rows[key].get("score") is None for key in ids)
            return Score("total", {"total": None}, silent, (reason,))
        grades = {key: _grades(verdicts.get(key, "score"), f"{verdicts.path}, {key}") for key in ids}
        metrics = mmvet_scores(grades, {item.id: item.target["capabilities"] for item in items})
        graded = {key: Graded(given, mean(given)) for key, given in grades.items()}
        return Score("total", metrics, items=graded)


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any], ImageSource]]:
    images = image_folder(path.parent, "images")
    for key, row in read_json(path).items():
        yield key, row, images / field(row, "imagename", path)


def _parquet_rows(folder: Path) -> Iterator[tuple[str, Mapping[str, Any], ImageSource]]:
    needed = ("question_id", "question", "answer", "capability")
    for row, image in image_rows(folder, "test-*.parquet", needed):
        yield row["question_id"], row, image


def _capabilities(row: Mapping[str, Any]) -> list[str]:
    """A list in the official file; the table may hold it as one text with commas."""
    given = row["capability"]
    return [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)


def _grades(grades: Any, what: str) -> list[float]:
    """The grades of one item, one for each run of the judge."""
    valid = isinstance(grades, list) and all(isinstance(g, (int, float)) and 0 <= g <= 1 for g in grades)
    if not grades or not valid:
        raise UserError(f'{what}: "score" must be a list of grades between 0 and 1, one for each run')
    return [float(grade) for grade in grades]
