"""MathVista: an answer is extracted from the response, converted to the key's type, and compared.

Source: lupantech/MathVista, evaluation/extract_answer.py with prompts/ext_ans.py, and calculate_score.py.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MathProblem:
    """Fields of the official file that scoring needs.

    `question_type` is "multi_choice" or "free_form"; `answer_type` "text", "integer", "float" or "list";
    `precision` the decimals of a float.
    """

    question_type: str
    answer_type: str
    choices: tuple[str, ...] = ()
    precision: float | None = None


def extract_quickly(response: str, problem: MathProblem) -> str | None:
    """The answer that rules find in a response; None where the official script asks GPT-4.

    That is the empty response, one that equals a choice, one that is only an integer or a float where that is
    the type of the answer, or the … in `The answer is "…".` (the official option --quick_extract).
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
    stated = re.search(r'The answer is "(.*)"\.', response)
    return stated[1] if stated else None


def hint(question_type: str, answer_type: str, precision: float | None = None) -> str:
    """The official hint of a query: the form of the answer."""
    if question_type == "multi_choice":
        return (
            "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
        )
    if answer_type == "integer":
        wanted, what, examples = "an integer answer", "value", "1, 2, 3"
    elif answer_type == "list":
        wanted, what, examples = "a Python list as an answer", "list", "[1, 2, 3], [1.2, 1.3, 1.4]"
    else:
        decimals, examples = _DECIMALS[int(precision or 0)]
        wanted, what = f"a floating-point number with {decimals}", "value"
    request = f"Please answer the question requiring {wanted} and provide the final {what}"
    return f"{request}, e.g., {examples}, at the end."


_DECIMALS = {1: ("one decimal place", "1.2, 1.3, 1.4"), 2: ("two decimal places", "1.23, 1.34, 1.45")}
# hint, question, response, answer
_DEMONSTRATIONS = (
    (
        hint("free_form", "integer"),
        "Which number is missing?",
        "The number missing in the sequence is 14.",
        "14",
    ),
    (
        hint("free_form", "float", 1),
        "What is the fraction of females facing the camera?",
        "The fraction of females facing the camera is 0.6, which means that six out of ten females in the "
        "group are facing the camera.",
        "0.6",
    ),
    (
        hint("free_form", "float", 2),
        "How much money does Luca need to buy a sour apple candy and a butterscotch candy? (Unit: $)",
        "Luca needs $1.45 to buy a sour apple candy and a butterscotch candy.",
        "1.45",
    ),
    (
        hint("free_form", "list"),
        "Between which two years does the line  graph saw its maximum peak?",
        "The line graph saw its maximum peak between 2007 and 2008.",
        "[2007, 2008]",
    ),
    (
        hint("multi_choice", "text"),
        "What fraction of the shape is blue?\nChoices:\n(A) 3/11\n(B) 8/11\n(C) 6/11\n(D) 3/5",
        "The correct answer is (B) 8/11.",
        "B",
    ),
)
EXTRACTION_PROMPT = "\n\n".join(
    [
        "Please read the following example. Then extract the answer from the model response and type it at "
        "the end of the prompt.",
        *(
            f"Hint: {form}\nQuestion: {question}\n\nModel response: {response}\n\nExtracted answer: {answer}"
            for form, question, response, answer in _DEMONSTRATIONS
        ),
    ]
)


def extraction_prompt(query: str, response: str) -> str:
    """The judge's prompt to extract an answer from a response: examples, and one to complete."""
    return f"{EXTRACTION_PROMPT}\n\n{query}\n\n{response}\n\nExtracted answer: "


def to_answer_type(extraction: str, problem: MathProblem) -> str | None:
    """The extracted answer in the form of the key; None if it does not have the key's type.

    Multiple choice: the choice of the letter in "(A)" or of a single capital letter, else the first choice of
    the smallest edit distance, so that *every* string selects one. An integer is truncated ("3.9" is "3"); a
    float is rounded to the problem's decimals.
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
    index = ord(letter) - ord("A") if len(letter) == 1 else -1
    if 0 <= index < len(choices):
        return choices[index]
    return min(choices, key=lambda choice: edit_distance(letter, choice), default=None)


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions of characters."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        corner, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def math_is_right(extraction: str, key: str, problem: MathProblem) -> bool:
    """Whether an extracted answer equals the key, both as strings."""
    return to_answer_type(extraction, problem) == key
