"""Open answers: MMMU's candidates and numbers, MathVista's extraction, MM-Vet's means; worked by hand."""

import pytest

from dualtoken.eval.scorers.mathvista import (
    MathProblem,
    edit_distance,
    extract_quickly,
    math_is_right,
    to_answer_type,
)
from dualtoken.eval.scorers.mmmu_open import key_parts, normalise, numbers_in, open_is_right
from dualtoken.eval.scorers.mmvet import mmvet_scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000", [1000.0]),
        ("3.14159", [3.14]),
        (" 1e3 ", [1000.0]),
        ("-2", [-2.0]),
        ("$5", ["$5"]),
        ("Dog", ["dog"]),
        ("b", [" b", "b "]),
        ("", [""]),
    ],
)
def test_mmmu_normal_form(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("5.5 m and -7", ["5.5", "-7"]),
        (".5", [".5"]),
        ("1,234", ["1,234", "234"]),  # the tail is found again as a plain number
        ("2e-3", ["2e-3", "-3"]),
        ("3, 4", ["4"]),  # a plain number before a comma is not found
        ("12kg, 7 m", ["7"]),  # a number has to end a word
        ("no number", []),
    ],
)
def test_mmmu_numbers(text, numbers):
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ("30", ["30"]),
        ("The answer is 30.", ["30"]),
        ("So the result is x = 5", ["5"]),  # the equals sign counts in the last line
        ("x = 5\nso it is five", ["five"]),  # … and not before it
        ("The first is 4.\nThe final answer is 7.", ["4.", "7"]),
        ("It is .", ["it is "]),  # nothing after the word: the complete answer
        ("Therefore it is .", ["it is"]),  # an empty tail gives way to the next one
        ("", [""]),
    ],
)
def test_mmmu_key_parts(answer, parts):
    assert key_parts(answer) == parts


@pytest.mark.parametrize(
    ("answer", "key", "right"),
    [
        ("30", "30", True),
        ("36 watts", "30", False),
        ("The answer is 30 watts.", "30", True),
        ("30.001", "30", True),  # two decimals
        ("The total is 1,000 dollars", "1000", True),
        ("$1000", "1000", True),  # the number in it
        ("1000kg", "1000", False),  # … which has to end a word
        ("130", "30", False),
        ("It is a red dog", "dog", True),  # a key that is a string may be inside
        ("hot dogs", "dog", True),  # … of a word, too
        ("grab", "b", False),  # one character needs a blank next to it
        ("plan b", "b", True),
        ("B", "b", True),
        ("seven", ["7", "seven"], True),
        ("eight", ["7", "seven"], False),
        ("", "30", False),
        ("I'm sorry, I can't help with that.", "30", False),
    ],
)
def test_mmmu_open(answer, key, right):
    assert open_is_right(answer, key) == right


CHOICE = MathProblem("multi_choice", "text", ("12", "14", "21"))
INTEGER = MathProblem("free_form", "integer")
FLOAT = MathProblem("free_form", "float", precision=1.0)
LIST = MathProblem("free_form", "list")


@pytest.mark.parametrize(
    ("response", "problem", "extraction"),
    [
        ("", CHOICE, ""),
        ("14", CHOICE, "14"),
        ("(B) 14", CHOICE, None),  # the judge's
        (" 7 ", INTEGER, "7"),
        ("7.5", INTEGER, None),
        ("1,000", INTEGER, None),  # Python's int knows no comma
        ("7 apples", INTEGER, None),
        ("1.25", FLOAT, "1.25"),
        ("3", FLOAT, "3.0"),
        ('So it goes. The answer is "8".', INTEGER, "8"),
        ("The answer is 8.", INTEGER, None),  # without quotation marks
        ("I cannot say", INTEGER, None),
    ],
)
def test_mathvista_extraction(response, problem, extraction):
    assert extract_quickly(response, problem) == extraction


@pytest.mark.parametrize(
    ("extraction", "problem", "value"),
    [
        ("(B) 14", CHOICE, "14"),
        ("(b)", CHOICE, "14"),
        ("B", CHOICE, "14"),
        ("b", CHOICE, "12"),  # a small letter is not a choice: all are equally far, the first wins
        ("2", CHOICE, "12"),  # 12 and 21 are one insertion away, 12 comes first
        ("21 cm", CHOICE, "21"),
        ("", CHOICE, "12"),
        ("(Z)", CHOICE, "12"),
        ("3.9", INTEGER, "3"),
        ("1e3", INTEGER, "1000"),
        ("1,000", INTEGER, None),
        ("inf", INTEGER, None),
        ("7 cm", INTEGER, None),
        ("1.25", FLOAT, "1.2"),  # Python rounds the half to even digits
        ("3", FLOAT, "3.0"),
        ("[1, 2]", LIST, "[1, 2]"),
    ],
)
def test_mathvista_types(extraction, problem, value):
    assert to_answer_type(extraction, problem) == value


def test_mathvista_compares_texts():
    assert math_is_right("3.04", "3.0", FLOAT)
    assert not math_is_right("3.06", "3.0", FLOAT)
    assert not math_is_right("none", "3", INTEGER)
    assert not math_is_right("[1,2]", "[1, 2]", LIST)


def test_edit_distance():
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance("same", "same") == 0


def test_mmvet_means_by_item_and_capability():
    grades = {"v1_0": [1.0, 0.5], "v1_1": [0.0, 0.5]}
    scores = mmvet_scores(grades, {"v1_0": ["ocr", "math"], "v1_1": ["ocr"]})
    # Runs: (1 + 0) / 2 and (0.5 + 0.5) / 2, both 50.
    assert scores == {"total": 50, "std": 0, "capability/math": 75, "capability/ocr": 50}


def test_mmvet_spread_over_runs():
    scores = mmvet_scores({"a": [1.0, 0.0]}, {"a": []})
    assert (scores["total"], scores["std"]) == (50, 50)
    assert mmvet_scores({}, {}) == {"total": None, "std": None}
