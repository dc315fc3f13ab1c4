"""Yes-no answers, by the different rules of POPE and MME."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from .averages import percent

_PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR"
MME_PERCEPTION = tuple(_PERCEPTION.split())
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def pope_answer(text: str) -> str:
    """An answer by POPE's rule, always "yes" or "no".

    The part before the first full stop, without commas, is split at single blanks. It is "no" with one of the
    words "No", "no" and "not", else "yes": also "NO", "nothing", "no!" and the empty answer. Source:
    AoiDragon/POPE, evaluate.py.
    """
    return "no" if {"No", "no", "not"} & set(text.split(".")[0].replace(",", "").split(" ")) else "yes"


def pope_says_either(text: str) -> bool:
    """Whether an answer contains a yes or a no; one without either counts as "yes" nevertheless."""
    yes = any(word.lower().strip("!?:;\"'") == "yes" for word in text.split(".")[0].replace(",", " ").split())
    return yes or pope_answer(text) == "no"


def binary_scores(answers: Sequence[str], labels: Sequence[str]) -> dict[str, float | None]:
    """Accuracy, precision, recall, F1 and share of "yes", in per cent, with "yes" the positive class.

    None where a metric is undefined (precision without an answer "yes"); the official script divides by zero
    there. Source: AoiDragon/POPE, evaluate.py; Li et al., arXiv 2305.10355.
    """
    pairs = list(zip(answers, labels, strict=True))
    true_yes = sum(answer == label == "yes" for answer, label in pairs)
    answered_yes = sum(answer == "yes" for answer, _ in pairs)
    is_yes = sum(label == "yes" for _, label in pairs)
    return {
        "accuracy": percent(answer == label for answer, label in pairs),
        "precision": percent(label == "yes" for answer, label in pairs if answer == "yes"),
        "recall": percent(answer == "yes" for answer, label in pairs if label == "yes"),
        # 2PR / (P + R), in a form that is defined where P or R is undefined.
        "f1": 200 * true_yes / (answered_yes + is_yes) if true_yes else None,
        "yes_ratio": percent(answer == "yes" for answer, _ in pairs),
    }


def mme_answer(text: str) -> str:
    """An answer by MME's rule: "yes", "no" or "other".

    "yes" if its first four characters, lower-cased, contain "yes", else "no" if they contain "no", else
    "other", which is wrong. So "Not at all", "Know" and " No" are "no", and "I think no" is "other". Source:
    MME's eval_tool/calculation.py; Fu et al., arXiv 2306.13394.
    """
    head = text.lower()[:4]
    return "yes" if "yes" in head else "no" if "no" in head else "other"


@dataclass(frozen=True)
class MMERow:
    """One question of MME: `answer` from `mme_answer`, None for "other"; `label` is "yes" or "no"."""

    task: str
    image: Hashable
    answer: str | None
    label: str


def mme_scores(rows: Sequence[MMERow]) -> dict[str, float | None]:
    """MME's table: the score of each task, and the sums "perception" (of 10) and "cognition" (of 4).

    A task's score is 100 × accuracy (of questions) + 100 × accuracy+ (of images whose questions are all
    right), so 200 at most; perception is 2000 at most and cognition 800. A sum is None unless all of its
    tasks are there. Source: MME's eval_tool/calculation.py.
    """
    by_task: dict[str, list[MMERow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    scores = {task: _task_score(task_rows) for task, task_rows in by_task.items()}

    def total(tasks: Sequence[str]) -> float | None:
        return sum(scores[task] for task in tasks) if all(task in scores for task in tasks) else None

    sums = {"perception": total(MME_PERCEPTION), "cognition": total(MME_COGNITION)}
    return {**sums, **{f"task/{task}": score for task, score in scores.items()}}


def _task_score(rows: Sequence[MMERow]) -> float:
    images: dict[Hashable, bool] = {}
    for row in rows:
        images[row.image] = images.get(row.image, True) and row.answer == row.label
    right = sum(row.answer == row.label for row in rows)
    return 100 * right / len(rows) + 100 * sum(images.values()) / len(images)
