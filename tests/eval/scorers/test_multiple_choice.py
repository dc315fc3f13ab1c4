"""The option that an answer selects by each task's rule; worked by hand."""

import math

import pytest

from dualtoken.eval.scorers.multiple_choice import (
    circular_accuracy,
    exact_letter,
    letters_for,
    likeliest,
    mmbench_option,
    mmmu_option,
    scienceqa_option,
)

ANIMALS = {"A": "a black cat", "B": "a dog", "C": "an insect", "D": "two birds"}


@pytest.mark.parametrize(
    ("answer", "picked"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("Answer: B", "B"),
        ("The answer is B, a dog", "B"),
        ("A", "A"),
        ("A.", "A"),
        ("A. a black cat sits there", "A"),  # with a full stop it is a letter, however long the answer
        ("A dog", "A"),  # three words or fewer: counts as the letter, following the official rule
        ("A dog is on the mat", "B"),  # longer: the article, so the text decides
        ("A cow is on the mat", None),
        ("I see a dog", "B"),  # I is no option here
        ("b", None),  # small letters are none
        ("Because", None),  # letters inside words are none
        ("A or B", None),  # two letters
        ("A dog and two birds are here", None),  # two texts
        ("Two birds", "D"),
        ("E", None),  # not an option
        ("", None),
        ("Sorry, I can't help with images of people yet. B", None),
        ("Cannot determine the answer", None),
        ("Z", None),
        ("It is a dog " + "and so on " * 20, None),  # longer than twice all options
    ],
)
def test_mmbench(answer, picked):
    assert mmbench_option(answer, ANIMALS) == picked


def test_i_is_a_letter_only_if_there_is_an_option_i():
    options = letters_for([f"number {i}" for i in range(9)])
    assert mmbench_option("I", options) == "I"
    assert mmbench_option("I", ANIMALS) is None


def test_a_question_counts_only_if_all_rotations_are_correct():
    rows = {"1": "q1", "1000001": "q1", "2": "q2", "1000002": "q2", "2000002": "q2"}
    right = {"1": True, "1000001": True, "2": True, "1000002": False, "2000002": True}
    assert circular_accuracy(right, rows) == {"q1": 1.0, "q2": 0.0}


@pytest.mark.parametrize(
    ("answer", "picked"),
    [
        ("B", "B"),
        (" B\n", None),  # the line break becomes ". " first
        ("B ", "B"),
        ("B. a dog", "B"),
        ("B.", None),
        ("B) a dog", None),
        ("The answer is B.", "B"),
        ("Because of this. The answer is B", "B"),
        ("The answer is A. Not B.", "A"),
        ("the answer is B.", None),  # the capital matters
        ("b", None),
        ("A dog", None),
        ("AB", None),
        ("D", None),  # there are three choices
        ("The answer is D.", None),
        ("", None),
    ],
)
def test_scienceqa(answer, picked):
    assert scienceqa_option(answer, 3) == picked


@pytest.mark.parametrize(
    ("answer", "picked"), [("C", "C"), (" C ", "C"), ("C.", None), ("c", None), ("", None), ("E", None)]
)
def test_seedbench_by_letter(answer, picked):
    assert exact_letter(answer) == picked


def test_seedbench_by_likelihood():
    assert likeliest([-3.0, -1.5, -2.0, -9.0]) == "B"
    assert likeliest([-1.0, -1.0]) == "A"  # the first of equals
    assert likeliest([-math.inf, -7.0]) == "B"
    assert likeliest([-1.0, math.nan]) is None
    assert likeliest([]) is None


@pytest.mark.parametrize(
    ("answer", "picked"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(B)", "B"),
        ("Option B is right", "B"),
        ("(A) is wrong, so (C)", "C"),  # the last one
        ("A is wrong, so C", "C"),
        ("A is wrong, so (B)", "B"),  # brackets go first
        ("A dog", "A"),  # letters between blanks, the article too
        ("B\n", None),  # only blanks part a letter
        ("BAD", None),
        ("b", None),
        ("a dog", None),  # an option's text counts only in answers of more than five words
        ("in the image there is a dog", "B"),
        ("there is a dog and there are two birds", "D"),
        ("none of these fits the picture at all", None),
        ("", None),
    ],
)
def test_mmmu(answer, picked):
    assert mmmu_option(answer, ANIMALS) == picked
