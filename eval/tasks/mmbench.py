"""MMBench: every question is asked with its options in every rotation. Liu et al., arXiv 2307.06281."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import Graded, HubData, Item, JudgedTask, Score, ScoringContext, hidden_answers, register
from ..data.files import Row, image_from_base64, image_rows, parse_rows, read_tsv
from ..judges.replay import Verdicts
from ..scorers.averages import percent, percent_by
from ..scorers.multiple_choice import (
    LETTERS,
    circular_accuracy,
    matched_letter,
    matching_prompt,
    mmbench_option,
    mmbench_refuses,
)

# split -> rows (all rotations; dev-en has 1,164 questions), official file, files of the hub's table
SPLITS = {
    "dev-en": (4329, "MMBench_DEV_EN.tsv", "en/dev-*.parquet"),
    "dev-cn": (4329, "MMBench_DEV_CN.tsv", "cn/dev-*.parquet"),
    "dev-20230712": (4377, "mmbench_dev_20230712.tsv", ""),
    "test-en": (6666, "MMBench_TEST_EN.tsv", "en/test-*.parquet"),
    "test-cn": (6666, "MMBench_TEST_CN.tsv", "cn/test-*.parquet"),
}
# Rotation k of question i has index i + k · 1,000,000.
ROTATION = 1_000_000
# A shorter image cell is not an image in base64 but the index of the row that holds it.
SHORTEST_IMAGE = 64


@register
class MMBench(JudgedTask):
    """Multiple choice under circular evaluation; each rotation is a row of the table."""

    name = "mmbench"
    summary = "multiple choice, right only in all rotations (circular accuracy)"
    splits = {split: rows for split, (rows, _, _) in SPLITS.items()}
    judge_tokens = 16
    source = "github.com/open-compass/MMBench, the TSV files"
    server = "the MMBench evaluation server"
    hub = HubData(
        "lmms-lab-encoder/MMBench", {split: (table,) for split, (_, _, table) in SPLITS.items() if table}
    )

    def load(self, root: Path | None, split: str) -> list[Item]:
        """The prompt of VLMEvalKit's ImageMCQDataset, without the blank and line break at its end."""
        _, file, table = SPLITS[split]
        path = self.need_file(root, file, *([table.partition("/")[0]] if table else []))
        return parse_rows(_parquet_rows(path.parent, table) if path.is_dir() else _tsv_rows(path), _item)

    def grade(self, item: Item, prediction: Any) -> Graded:
        picked = mmbench_option(str(prediction), item.target["options"])
        return Graded(picked, float(picked == item.target["answer"]))

    def judge_prompts(self, items: Sequence[Item], predictions: Mapping[str, Any]) -> dict[str, str]:
        """The official prompt to match an answer with an option, where rules find none.

        Questions with an incorrect rotation are left out: they are lost already.
        """
        asked: dict[str, tuple[str, str]] = {}
        lost = set()
        for item in items:
            target, answer = item.target, str(predictions[item.id])
            graded = self.grade(item, answer)
            if not target["answer"]:
                continue
            if graded.parsed is None and not mmbench_refuses(answer, target["options"]):
                prompt = matching_prompt(target["text"], target["options"], answer.strip())
                asked[item.id] = target["question"], prompt
            elif not graded.score:
                lost.add(target["question"])
        return {key: prompt for key, (question, prompt) in asked.items() if question not in lost}

    def read_reply(self, reply: str) -> dict[str, Any] | None:
        letter = matched_letter(reply)
        return None if letter is None else {"option": letter}

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        """Circular accuracy, over all and by category; "accuracy_one_pass" is that of the unrotated rows.

        These are by rule; "accuracy_with_judge" uses the judge's matches where rules find no option.
        """
        if self.is_hidden(items):
            return hidden_answers(self.server)
        graded = {item.id: self.grade(item, predictions[item.id]) for item in items}
        right = {key: one.score == 1 for key, one in graded.items()}
        circular = circular_accuracy(right, {item.id: item.target["question"] for item in items})
        metrics = {"accuracy": percent(circular.values())}
        first_rows = {item.target["question"]: item.target for item in reversed(items)}
        for name in ("category", "l2-category"):
            if all(row[name] for row in first_rows.values()):
                groups = {question: [str(row[name])] for question, row in first_rows.items()}
                metrics |= percent_by(circular, groups, f"{name}/")
        metrics["accuracy_one_pass"] = percent(right[question] for question in circular if question in right)
        unparsed = sum(one.parsed is None for one in graded.values())
        notes = []
        if unparsed:
            notes.append(f"rules find no option in {unparsed} answers; without a judge they are incorrect")
        judged, reason = self._judged_accuracy(items, predictions, right, context.verdicts)
        if reason is not None:
            notes.append(f"accuracy_with_judge is null: {reason}")
        metrics["accuracy_with_judge"] = judged
        return Score("accuracy", metrics, unparsed, tuple(notes), graded)

    def _judged_accuracy(
        self,
        items: Sequence[Item],
        predictions: Mapping[str, Any],
        right: Mapping[str, bool],
        verdicts: Verdicts,
    ) -> tuple[float | None, str | None]:
        """Circular accuracy with the judge's matches, or None and the reason."""
        open_ids = self.judge_prompts(items, predictions)
        targets = {item.id: item.target for item in items}
        rows = None
        if verdicts.rows is not None:
            # A letter that is not an option is not a verdict.
            allowed = {key: (*targets[key]["options"], "Z") for key in open_ids}
            known = {key: row for key, row in verdicts.rows.items() if key in allowed}
            rows = {key: row if row.get("option") in allowed[key] else {} for key, row in known.items()}
        verdicts = Verdicts(verdicts.path, rows)
        if (reason := verdicts.why_incomplete(open_ids, "option")) is not None:
            return None, reason
        matched = {key: verdicts.get(key, "option") == targets[key]["answer"] for key in open_ids}
        questions = {key: target["question"] for key, target in targets.items()}
        return percent(circular_accuracy({**right, **matched}, questions).values()), None


def _tsv_rows(path: Path) -> Iterator[Row]:
    rows = list(read_tsv(path, ("index", "question", "A", "B", "image")))
    images = {row["index"]: row["image"] for row in rows}
    for row in rows:
        cell = row["image"] if len(row["image"]) > SHORTEST_IMAGE else images.get(row["image"], row["image"])
        row.images = (image_from_base64(cell, f"{row.where}, index {row['index']}"),)
        yield row


def _parquet_rows(folder: Path, pattern: str) -> Iterator[Row]:
    for row in image_rows(folder, pattern, ("index", "question", "A", "B")):
        # As in a TSV: an absent cell is an empty string; the table writes "nan" for it.
        row |= {key: "" if value in (None, "nan") else str(value) for key, value in row.items()}
        yield row


def mmbench_prompt(question: str, hint: str, options: Mapping[str, str]) -> str:
    """Hint (if any), question, options and request, a line each."""
    lines = [f"Hint: {hint}"] if hint else []
    lines += [f"Question: {question}", "Options:", *(f"{letter}. {text}" for letter, text in options.items())]
    return "\n".join([*lines, "Please select the correct answer from the options above."])


def _item(row: Row) -> Item:
    options = {letter: row[letter] for letter in LETTERS if row.get(letter)}
    target = {
        "question": str(int(row["index"]) % ROTATION),
        "text": row["question"],
        "answer": row.get("answer", ""),
        "options": options,
        "category": row.get("category", ""),
        "l2-category": row.get("l2-category", "") or row.get("L2-category", ""),
    }
    prompt = mmbench_prompt(row["question"], row.get("hint", ""), options)
    return Item(row["index"], prompt, row.images, target)
