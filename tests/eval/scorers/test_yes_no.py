"""The different rules of POPE and MME; every case is worked by hand from the official scripts."""

import pytest

from dualtoken.eval.scorers.yes_no import (
    MME_COGNITION,
    MME_PERCEPTION,
    MMERow,
    binary_scores,
    mme_answer,
    mme_scores,
    pope_answer,
    pope_says_either,
)


@pytest.mark.parametrize(
    ("text", "pope", "mme"),
    [
        ("yes", "yes", "yes"),
        ("Yes", "yes", "yes"),
        ("YES!", "yes", "yes"),
        ("no", "no", "no"),
        ("No", "no", "no"),
        ("No.", "no", "no"),
        ("NO", "yes", "no"),  # POPE knows "No" and "no" only
        ("no!", "yes", "no"),  # an exclamation mark stays on POPE's word
        ("No, there is a dog", "no", "no"),  # commas are removed before the cut into words
        ("Yes, there is no doubt", "no", "yes"),  # any "no" of the first sentence, against the start
        ("Yes. There is no doubt.", "yes", "yes"),  # the second sentence does not count
        ("There is not a dog", "no", "other"),  # MME sees "ther"
        ("There are none", "yes", "other"),  # "none" is no word of POPE's list
        ("Nothing", "yes", "no"),  # MME sees "noth"
        ("I know", "yes", "other"),
        ("know", "yes", "no"),  # "no" inside the first four characters
        ("Oh yes", "yes", "other"),  # "oh y"
        (" No", "no", "no"),
        ("   yes", "yes", "other"),  # blanks count among the four characters
        ("No\nthere", "yes", "no"),  # POPE cuts at blanks only: the word is "No\nthere"
        ("", "yes", "other"),
        ("I cannot answer that", "yes", "other"),  # a refusal is a yes for POPE
    ],
)
def test_one_answer_by_both_rules(text, pope, mme):
    assert pope_answer(text) == pope
    assert mme_answer(text) == mme


def test_answers_with_neither_word_are_counted():
    assert pope_says_either("Yes, it is")
    assert pope_says_either("No")
    assert pope_says_either("It is not there")
    assert not pope_says_either("")
    assert not pope_says_either("A dog. Yes")


def test_binary_scores_by_hand():
    answers = ["yes", "yes", "yes", "no", "no"]
    labels = ["yes", "yes", "no", "yes", "no"]
    scores = binary_scores(answers, labels)
    assert scores["accuracy"] == pytest.approx(60)
    assert scores["precision"] == pytest.approx(200 / 3)
    assert scores["recall"] == pytest.approx(200 / 3)
    assert scores["f1"] == pytest.approx(200 / 3)
    assert scores["yes_ratio"] == pytest.approx(60)


def test_undefined_metrics_are_none():
    scores = binary_scores(["no", "no"], ["yes", "no"])
    assert (scores["precision"], scores["recall"], scores["f1"]) == (None, 0, None)
    assert all(value is None for value in binary_scores([], []).values())


def test_mme_adds_accuracy_and_accuracy_plus():
    rows = [
        MMERow("color", "a.jpg", "yes", "yes"),
        MMERow("color", "a.jpg", "no", "no"),  # image a: both right
        MMERow("color", "b.jpg", "yes", "yes"),
        MMERow("color", "b.jpg", "other", "no"),  # image b: one right
    ]
    scores = mme_scores(rows)
    assert scores["task/color"] == pytest.approx(75 + 50)
    assert scores["perception"] is None
    assert scores["cognition"] is None


def test_mme_distinguishes_images_of_the_same_name_in_different_tasks():
    rows = [
        MMERow(task, "0001.png", answer, label)
        for task, answers in (("OCR", ("yes", "no")), ("count", ("no", "yes")))
        for answer, label in zip(answers, ("yes", "no"), strict=True)
    ]
    scores = mme_scores(rows)
    assert (scores["task/OCR"], scores["task/count"]) == (200, 0)


def test_mme_sums_are_2000_and_800_if_all_is_correct():
    rows = [
        MMERow(task, "image", label, label)
        for task in (*MME_PERCEPTION, *MME_COGNITION)
        for label in ("yes", "no")
    ]
    scores = mme_scores(rows)
    assert (scores["perception"], scores["cognition"]) == (2000, 800)
