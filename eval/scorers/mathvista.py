"""MathVista: an answer is extracted from the response, brought to the key's type, and compared.

Source: lupantech/MathVista, evaluation/extract_answer.py and evaluation/calculate_score.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MathProblem:
    """What of a problem its scoring needs, in the words of the official file.

    `question_type` is "multi_choice" or "free_form"; `answer_type` "text", "integer", "float" or "list";
    `precision` the decimals of a float.
    """

    question_type: str
    answer_type: str
    choices: tuple[str, ...] = ()
    precision: float | None = None


def extract_quickly(response: str, problem: MathProblem) -> str | None:
    """The answer in a response as far as rules find it; None where the official script asks GPT-4.

    The empty response; a response that is a choice word for word, or an integer or a float as a whole where
    one is asked for; or the words `The answer is "…".` (the official option --quick_extract).
    """
    if response == "":
        return ""
    if problem.question_type == "multi_choice" and response in problem.choices:
        return response
    try:
        if problem.answer_type == "integer":
            return str(int(response))
        if problem.answer_type == "float":
            return str(float(response))
    except ValueError:
        pass
    said = re.search(r'The answer is "(.*)"\.', response)
    return said[1] if said else None


def to_answer_type(extraction: str, problem: MathProblem) -> str | None:
    """The extracted text in the form of the key; None if it is not of its type.

    Multiple choice: the choice of the letter in "(A)" or of a bare capital letter, else the choice of the
    smallest edit distance, the first of equals: so *every* text picks a choice, the empty one too. An integer
    is cut, not rounded ("3.9" is "3"); a float is rounded to the problem's decimals.
    """
    if problem.question_type == "multi_choice":
        return _choice(extraction.strip(), problem.choices)
    try:
        if problem.answer_type == "integer":
            return str(int(float(extraction)))
        if problem.answer_type == "float":
            return str(round(float(extraction), int(problem.precision or 0)))
    except (ValueError, OverflowError):
        return None
    return extraction


def _choice(text: str, choices: Sequence[str]) -> str | None:
    letters = re.findall(r"\(([a-zA-Z])\)", text)
    letter = letters[0].upper() if letters else text
    place = ord(letter) - ord("A") if len(letter) == 1 else -1
    if 0 <= place < len(choices):
        return choices[place]
    return min(choices, key=lambda choice: edit_distance(letter, choice), default=None)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and replacements of characters."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        corner, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def math_is_right(extraction: str, key: str, problem: MathProblem) -> bool:
    """Whether an extracted answer equals the key, both as strings."""
    return to_answer_type(extraction, problem) == key
