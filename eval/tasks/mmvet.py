"""MM-Vet: open questions that need several capabilities at once. Yu et al., arXiv 2308.02490."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.errors import UserError
from .. import Graded, HubData, Item, JudgedTask, Score, ScoringContext, register
from ..data.files import Row, image_folder, image_rows, json_rows, parse_rows
from ..scorers.averages import mean
from ..scorers.mmvet import SECOND_REQUEST, grade_in, grading_prompt, mmvet_scores


@register
class MMVet(JudgedTask):
    """Free answers that GPT-4 grades from 0 to 1 in the official evaluator."""

    name = "mmvet"
    summary = "open questions of several capabilities (needs a judge)"
    splits = {"test": 218}
    generation = {"max_new_tokens": 512}
    judge_tokens = 8  # the official number is 3 of GPT-4's; other vocabularies need more for "0.5"
    source = "github.com/yuweihao/MM-Vet, mm-vet.zip"
    hub = HubData("lmms-lab-encoder/MMVet", {"test": ("data/test-*.parquet",)})

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, "mm-vet.json", "data")
        if path.is_dir():
            needed = ("question_id", "question", "answer", "capability")
            return parse_rows(image_rows(path, "test-*.parquet", needed), _item)
        images = image_folder(path.parent, "images")
        return parse_rows(json_rows(path, image=lambda row: images / row["imagename"]), _item)

    def judge_prompts(self, items: Sequence[Item], predictions: Mapping[str, Any]) -> dict[str, str]:
        """The official request for a grade, for every item."""
        return {
            item.id: grading_prompt(item.prompt, item.target["answer"], str(predictions[item.id]))
            for item in items
        }

    def second_prompt(self, prompt: str) -> str:
        return prompt + SECOND_REQUEST

    def read_reply(self, reply: str) -> dict[str, Any] | None:
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


def _item(row: Row) -> Item:
    given = row["capability"]  # a list in the official file, one string with commas in the table of the hub
    capabilities = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    target = {"answer": row["answer"], "capabilities": capabilities}
    return Item(row.get("question_id") or row.key, row["question"], row.images, target)


def _grades(grades: Any, what: str) -> list[float]:
    """The grades of one item, one for each run of the judge."""
    valid = isinstance(grades, list) and all(isinstance(g, (int, float)) and 0 <= g <= 1 for g in grades)
    if not grades or not valid:
        raise UserError(f'{what}: "score" must be a list of grades between 0 and 1, one for each run')
    return [float(grade) for grade in grades]
