"""The soft accuracies of VQAv2 and TextVQA, and the exact matches of GQA and RealWorldQA, worked by hand."""

import pytest

from dualtoken.eval.scorers.exact_match import gqa_answer, realworldqa_answer
from dualtoken.eval.scorers.vqa_accuracy import (
    CONTRACTIONS,
    evalai_answer,
    leave_one_out,
    map_words,
    strip_punctuation,
    textvqa_accuracy,
    vqa_accuracy,
)


@pytest.mark.parametrize(("equal", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_leave_one_out_over_ten(equal, expected):
    human = ["dog"] * equal + [f"other {i}" for i in range(10 - equal)]
    # With 3 equal: the 3 people themselves see 2 others (2/3), the 7 others see 3 (1): (2 + 7) / 10.
    assert leave_one_out("dog", human) == pytest.approx(expected)


def test_without_human_answers_the_score_is_zero():
    assert leave_one_out("dog", []) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("red/blue", "red blue"),  # no blank next to the mark: a blank replaces it
        ("red / blue", "red  blue"),  # a blank beside it: it vanishes
        ("t-shirt", "t shirt"),
        ("1,000", "1000"),  # a comma in a number
        ("1,000 red/blue", "1000 redblue"),  # … lets every mark vanish
        ("cat's", "cat's"),  # the apostrophe is no mark of the list
        ("8:30", "8:30"),  # nor the colon
        ("St. Louis.", "St Louis"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("3.", "3"),
        ("yes!", "yes "),
        ("", ""),
    ],
)
def test_punctuation(text, expected):
    assert strip_punctuation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog", "dog"),
        ("a an the", ""),
        ("an apple a day", "apple day"),
        ("Two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("twenty one", "twenty 1"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("somebody'd", "somebodyd"),  # the official table has it the wrong way round
        ("lets", "lets"),  # not in the table
        ("  two   dogs ", "2 dogs"),
    ],
)
def test_words(text, expected):
    assert map_words(text) == expected


def test_the_table_of_contractions_has_the_official_114_entries_that_change_anything():
    # 120 officially: four in capitals, which lower-cased words never meet, and two that map to themselves.
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["oclock"] == "o'clock"
    assert CONTRACTIONS["y'alld've"] == "y'all'd've"


def test_vqa_normalises_only_where_people_differ():
    assert vqa_accuracy("10", ["ten"] * 10) == 0
    assert vqa_accuracy("10", ["ten"] * 9 + ["2"]) == 1
    assert vqa_accuracy("It's red.", ["it's red."] * 10) == 1  # case never matters


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("Two", 1),
        ("2", 1),
        ("2.", 1),
        ("the two", 1),
        ("\ttwo\n", 1),
        ("2 dogs", 0),
        ("", 0),
        ("I cannot tell", 0),
    ],
)
def test_vqa_accuracy(prediction, expected):
    assert vqa_accuracy(prediction, ["2"] * 6 + ["two"] * 2 + ["3", "4"]) == pytest.approx(expected)


def test_equal_human_answers_are_counted_by_person():
    assert vqa_accuracy("dog", ["dog", "dog", "cat", *["bird"] * 7]) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("McDonald's", "mcdonald 's"),  # the possessive is separated
        ("1,000", "1000"),
        ("Coca-Cola", "coca cola"),
        ("What?", "what"),
        ("a STOP sign", "stop sign"),
        ("red, white", "red white"),
        ("", ""),
    ],
)
def test_textvqa_normal_form(text, expected):
    assert evalai_answer(text) == expected


def test_textvqa_normalises_always():
    assert textvqa_accuracy("10", ["ten"] * 10) == 1  # 0 by VQAv2's rule
    assert textvqa_accuracy("stop", ["STOP"] * 2 + [f"other{i}" for i in range(8)]) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("text", "key", "right"),
    [
        ("Dog.", "dog", True),
        (" yes ", "yes", True),
        ("the dog", "dog", False),  # no articles are removed
        ("No, there is none", "no", False),
        ("dog .", "dog", False),  # a blank before the full stop stays
        ("", "no", False),
        ("2", "two", False),
    ],
)
def test_gqa(text, key, right):
    assert (gqa_answer(text) == key) == right


@pytest.mark.parametrize(
    ("text", "key", "right"),
    [
        ("B.", "B", True),
        ("b", "B", True),
        ("Two", "2", True),
        ("A dog", "A", False),
        ("", "A", False),
        ("12", "1", False),
    ],
)
def test_realworldqa(text, key, right):
    assert (realworldqa_answer(text) == realworldqa_answer(key)) == right
