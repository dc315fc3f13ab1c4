"""MM-Vet: open questions that need several capabilities at once. Yu et al., arXiv 2308.02490."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...tokenizer.errors import UserError
from ..benchmark import Benchmark, Item, Score
from ..files import distinct, field, image_folder
from ..json_lines import read_json
from ..judge_replay import read_replay, replay_path, why_no_judge
from ..registry import register
from ..scorers.mmvet import mmvet_scores


@register
class MMVet(Benchmark):
    """Free answers that GPT-4 grades from 0 to 1 in the official evaluator."""

    name = "mmvet"
    summary = "open questions of several capabilities (needs a judge's file)"
    splits: ClassVar[Mapping[str, int | None]] = {"test": 218}
    generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 512}
    source = "github.com/yuweihao/MM-Vet, mm-vet.zip"

    def load(self, root: Path | None, split: str) -> list[Item]:
        """Questions word for word."""
        path = self.need_file(root, "mm-vet.json")
        assert root is not None  # need_file refused it
        images = image_folder(root, "images")
        items = [
            Item(
                key,
                field(row, "question", path),
                (images / field(row, "imagename", path),),
                {"answer": row["answer"], "capabilities": row["capability"]},
            )
            for key, row in read_json(path).items()
        ]
        return distinct(items, path)

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """The total and each capability from mmvet-judge.json, the grade file of the official evaluator.

        Without the file, or with grades missing, every figure is None and the reason is in the notes.
        """
        wanted = {item.id for item in items}
        replay = {key: row for key, row in read_replay(folder, self.name).items() if key in wanted}
        reason = why_no_judge(folder, self.name, wanted, replay)
        if reason is not None:
            return Score("total", {"total": None}, notes=(reason,))
        path = replay_path(folder, self.name)
        grades = {item.id: _grades(replay[item.id], f"{path}, {item.id}") for item in items}
        metrics = mmvet_scores(grades, {item.id: item.target["capabilities"] for item in items})
        return Score(
            "total", metrics, correct={key: sum(given) / len(given) for key, given in grades.items()}
        )


def _grades(row: Mapping[str, Any], what: str) -> list[float]:
    """The grades of one item, one for each run of the judge."""
    grades = row.get("score")
    valid = isinstance(grades, list) and all(isinstance(g, (int, float)) and 0 <= g <= 1 for g in grades)
    if not grades or not valid:
        raise UserError(f'{what}: "score" must be a list of grades between 0 and 1, one for each run')
    return [float(grade) for grade in grades]
