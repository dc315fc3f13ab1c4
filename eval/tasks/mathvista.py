"""MathVista: mathematics with figures. Lu et al., arXiv 2310.02255."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...common.json_files import read_json
from ..data.files import distinct, field, image_from_cell, parquet_files, read_parquet
from ..data.hub import HubData
from ..harness.registry import register
from ..harness.score_tables import no_keys
from ..harness.task import ImageSource, Item, Score
from ..judges.judged import JudgedBenchmark
from ..judges.replay import read_replay, why_no_judge
from ..scorers.averages import percent, percent_by
from ..scorers.mathvista import MathProblem, extract_quickly, extraction_prompt, math_is_right
from ..scorers.multiple_choice import letters_for

_DECIMALS = {1: ("one decimal place", "1.2, 1.3, 1.4"), 2: ("two decimal places", "1.23, 1.34, 1.45")}


@register
class MathVista(JudgedBenchmark):
    """Multiple choice and free answers; what rules cannot extract from an answer, a judge has to."""

    name = "mathvista"
    summary = "mathematics with figures (accuracy; long answers need a judge)"
    splits: ClassVar[Mapping[str, int | None]] = {"testmini": 1000, "test": 5141}
    generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 512}
    judge_tokens = 256
    source = "huggingface.co/datasets/AI4Math/MathVista: data/*.parquet, or annot_*.json with images/"
    hub = HubData(
        "AI4Math/MathVista", {split: (f"data/{split}-*.parquet",) for split in ("testmini", "test")}
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        """The official query of each problem (hint, question, choices)."""
        path = self.need_file(root, f"annot_{split}.json", f"{split}.json", "data")
        rows = _parquet_rows(path, split) if path.is_dir() else _json_rows(path)
        items = [
            Item(
                str(field(row, "pid", path)), row.get("query") or mathvista_query(row), (image,), _target(row)
            )
            for row, image in rows
        ]
        return distinct(items, path)

    def judge_prompts(self, items: Sequence[Item], predictions: Mapping[str, Any]) -> dict[str, str]:
        """The official request for an extraction, for the answers that rules cannot read."""
        return {
            item.id: extraction_prompt(item.prompt, answer)
            for item in items
            if item.target["answer"]
            and extract_quickly(answer := str(predictions[item.id]), _problem(item.target)) is None
        }

    def read_reply(self, reply: str) -> dict[str, Any] | None:
        """The reply is the extraction; officially the empty one is none."""
        return {"extraction": reply} if reply else None

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """Accuracy over all and by task; None while an answer needs the judge and has no extraction.

        "accuracy_without_judge" takes the answers that only a judge can read for wrong: a lower bound. The
        judge's file, mathvista-judge.json, is the official output of extract_answer.py: {pid: {"extraction":
        …}}.
        """
        if any(not item.target["answer"] for item in items):
            return no_keys("test", "the MathVista leaderboard")
        rows = read_replay(folder, self.name)
        replay = {key: row.get("extraction") for key, row in rows.items()}
        problems = {item.id: _problem(item.target) for item in items}
        by_rule = {item.id: extract_quickly(str(predictions[item.id]), problems[item.id]) for item in items}
        open_ids = [key for key, extraction in by_rule.items() if extraction is None]
        reason = why_no_judge(folder, self.name, open_ids, rows, "extraction")

        def grade(key: str, answer: str, extraction: Any) -> float:
            return float(extraction is not None and math_is_right(str(extraction), answer, problems[key]))

        keys = {item.id: str(item.target["answer"]) for item in items}
        alone = {key: grade(key, answer, by_rule[key]) for key, answer in keys.items()}
        metrics = {"accuracy": None, "accuracy_without_judge": percent(alone.values())}
        if reason is not None:
            unread = sum(replay.get(key) is None for key in open_ids)
            return Score("accuracy", metrics, unread, (reason,), alone)
        correct = {
            key: grade(key, answer, by_rule[key] if by_rule[key] is not None else replay[key])
            for key, answer in keys.items()
        }
        metrics["accuracy"] = percent(correct.values())
        metrics.update(percent_by(correct, {item.id: [item.target["task"]] for item in items}, "task"))
        return Score("accuracy", metrics, 0, correct=correct)


def mathvista_query(problem: Mapping[str, Any]) -> str:
    """The query of a problem that comes without one: hint, question with its unit, choices.

    Source: lupantech/MathVista, evaluation/build_query.py, and the queries of the released files.
    """
    unit = f" (Unit: {problem['unit']})" if problem.get("unit") else ""
    lines = [f"Hint: {_hint(problem)}", f"Question: {problem['question']}{unit}"]
    if problem.get("choices"):
        lines += [
            "Choices:",
            *(f"({letter}) {text}" for letter, text in letters_for(problem["choices"]).items()),
        ]
    return "\n".join(lines)


def _hint(problem: Mapping[str, Any]) -> str:
    if problem["question_type"] == "multi_choice":
        return (
            "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
        )
    kind = problem["answer_type"]
    if kind == "integer":
        wanted, what, examples = "an integer answer", "value", "1, 2, 3"
    elif kind == "list":
        wanted, what, examples = "a Python list as an answer", "list", "[1, 2, 3], [1.2, 1.3, 1.4]"
    else:
        places, examples = _DECIMALS[int(problem["precision"])]
        wanted, what = f"a floating-point number with {places}", "value"
    request = f"Please answer the question requiring {wanted} and provide the final {what}"
    return f"{request}, e.g., {examples}, at the end."


def _json_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], ImageSource]]:
    for pid, row in read_json(path).items():
        yield {"pid": pid, **row}, path.parent / field(row, "image", path)


def _parquet_rows(folder: Path, split: str) -> Iterator[tuple[Mapping[str, Any], ImageSource]]:
    needed = ("pid", "question", "decoded_image", "question_type", "answer_type", "answer")
    for row in read_parquet(parquet_files(folder, f"{split}-*.parquet"), needed):
        yield row, image_from_cell(row["decoded_image"], f"{folder}, problem {row['pid']}")


def _target(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "answer": row.get("answer") or "",
        "question_type": row["question_type"],
        "answer_type": row["answer_type"],
        "choices": list(row.get("choices") or ()),
        "precision": row.get("precision"),
        "task": str((row.get("metadata") or {}).get("task", "")),
    }


def _problem(target: Mapping[str, Any]) -> MathProblem:
    return MathProblem(
        target["question_type"], target["answer_type"], tuple(target["choices"]), target["precision"]
    )
