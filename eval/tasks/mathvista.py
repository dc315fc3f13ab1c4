"""MathVista: mathematics with figures. Lu et al., arXiv 2310.02255."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import (
    Graded,
    HubData,
    Item,
    JudgedTask,
    Score,
    ScoringContext,
    accuracy_score,
    hidden_answers,
    register,
)
from ..data.files import Row, image_rows, json_rows, parse_rows
from ..scorers.mathvista import MathProblem, extract_quickly, extraction_prompt, hint, math_is_right
from ..scorers.multiple_choice import letters_for


@register
class MathVista(JudgedTask):
    """Multiple choice and free answers; a judge extracts what rules cannot."""

    name = "mathvista"
    summary = "mathematics with figures (accuracy; long answers need a judge)"
    splits = {"testmini": 1000, "test": 5141}
    generation = {"max_new_tokens": 512}
    judge_tokens = 256
    source = "huggingface.co/datasets/AI4Math/MathVista: data/*.parquet, or annot_*.json with images/"
    server = "the MathVista leaderboard"
    hub = HubData(
        "AI4Math/MathVista", {split: (f"data/{split}-*.parquet",) for split in ("testmini", "test")}
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        path = self.need_file(root, f"annot_{split}.json", f"{split}.json", "data")
        if path.is_dir():
            needed = ("pid", "question", "question_type", "answer_type", "answer")
            return parse_rows(image_rows(path, f"{split}-*.parquet", needed, "decoded_image"), _item)
        return parse_rows(json_rows(path, image=lambda row: path.parent / row["image"]), _item)

    def judge_prompts(self, items: Sequence[Item], predictions: Mapping[str, Any]) -> dict[str, str]:
        """The official prompt to extract an answer, where rules find none."""
        return {
            item.id: extraction_prompt(item.prompt, answer)
            for item in items
            if item.target["answer"]
            and extract_quickly(answer := str(predictions[item.id]), _problem(item.target)) is None
        }

    def read_reply(self, reply: str) -> dict[str, Any] | None:
        """The reply is the extraction; by the official rule an empty reply holds none."""
        return {"extraction": reply} if reply else None

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        """Accuracy over all and by task; None while an answer needs the judge and has no extraction.

        "accuracy_without_judge" is a lower bound: answers that only a judge can extract count as incorrect.
        The judge's file, mathvista-judge.json, is the official output of extract_answer.py: {pid:
        {"extraction": …}}.
        """
        if self.is_hidden(items):
            return hidden_answers(self.server)
        rules, judged = {}, {}
        for item in items:
            extraction = extract_quickly(str(predictions[item.id]), _problem(item.target))
            rules[item.id] = _graded(item, extraction)
            judged[item.id] = rules[item.id]
            if extraction is None:
                judged[item.id] = _graded(item, context.verdicts.get(item.id, "extraction"))
        table = accuracy_score(judged, {"task": {item.id: [item.target["task"]] for item in items}})
        metrics = {"accuracy": None, "accuracy_without_judge": accuracy_score(rules).metrics["accuracy"]}
        open_ids = [key for key, graded in rules.items() if graded.parsed is None]
        if (reason := context.verdicts.why_incomplete(open_ids, "extraction")) is not None:
            return Score("accuracy", metrics, table.unparsed, (reason,), rules)
        return replace(table, metrics={**metrics, **table.metrics})


def _graded(item: Item, extraction: Any) -> Graded:
    if extraction is None:
        return Graded(None, 0.0)
    right = math_is_right(str(extraction), str(item.target["answer"]), _problem(item.target))
    return Graded(str(extraction), float(right))


def mathvista_query(problem: Mapping[str, Any]) -> str:
    """The query of a problem without one in the file: hint, question with its unit, choices.

    Source: lupantech/MathVista, evaluation/build_query.py, and the queries of the released files.
    """
    unit = f" (Unit: {problem['unit']})" if problem.get("unit") else ""
    form = hint(problem["question_type"], problem["answer_type"], problem.get("precision"))
    lines = [f"Hint: {form}", f"Question: {problem['question']}{unit}"]
    if problem.get("choices"):
        choices = letters_for(problem["choices"])
        lines += ["Choices:", *(f"({letter}) {text}" for letter, text in choices.items())]
    return "\n".join(lines)


def _item(row: Row) -> Item:
    """The official query of a problem (hint, question, choices)."""
    target = {
        "answer": row.get("answer") or "",
        "question_type": row["question_type"],
        "answer_type": row["answer_type"],
        "choices": list(row.get("choices") or ()),
        "precision": row.get("precision"),
        "task": str((row.get("metadata") or {}).get("task", "")),
    }
    return Item(str(row.get("pid") or row.key), row.get("query") or mathvista_query(row), row.images, target)


def _problem(target: Mapping[str, Any]) -> MathProblem:
    return MathProblem(
        target["question_type"], target["answer_type"], tuple(target["choices"]), target["precision"]
    )
