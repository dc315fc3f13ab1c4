"""The forty general questions and the exact rules of their answers."""

from collections import Counter

import pytest

from dualtoken.data_pipelines.text.exact_rules import RULES
from dualtoken.data_pipelines.text.general_questions import GENERAL_QUESTIONS, KINDS
from dualtoken.eval import get_task

RIGHT = {
    "names": [("Paris", "The capital of France is Paris."), ("Paris", "paris"), ("mice", 'It is "mice".')],
    "states": [
        ("25", "15 + 10 = 25\n\nThis is"),
        ("5", "It is 5."),
        ("4", "20 ÷ 5 = 4"),
        ("5", "5, of course"),
    ],
    "one_sentence": [
        ("cat", "A fluffy cat with a coat."),
        ("dog", "Dogs bring joy to people!"),
        ("sea", 'He said "the sea is calm."'),
        ("moon", "The moon is 3.5 billion years old."),
    ],
    "begins": [
        ("no", "No."),
        ("Dear Anna,", "Dear Anna,\n\nI hope"),
        ("Once upon a time", '"Once upon a time, …'),
    ],
    "ends": [("?", "What's the weather like today?"), ("?", '"Is it cold?"')],
    "equals": [("1, 2, 3", "1, 2, 3."), ("1, 2, 3", " 1, 2, 3\n")],
    "numbered": [("3", "1. A\n2. B\n3. C"), ("2", "1) One\n\n2) Two")],
}
WRONG = {
    "names": [("Paris", "Parisian"), ("Rome", "Il Coriobella, Italy."), ("Paris", "")],
    "states": [("5", "15"), ("5", "2.5"), ("5", "5.2"), ("4", "40"), ("6", "-6"), ("25", "1,250")],
    "one_sentence": [
        ("cat", "A dog has a tail."),
        ("cat", "A cat sleeps here. It is soft."),
        ("cat", "A cat that never"),
        ("cat", "A cat."),
        ("cat", "A cat\nsleeps all day."),
        ("sea", "The season is over now."),
    ],
    "begins": [("no", "Nothing"), ("no", "The answer is no."), ("yes", "No. It is")],
    "ends": [("?", "Is it cold? Yes."), ("?", "")],
    "equals": [("1, 2, 3", "1, 2, 3, 4"), ("1, 2, 3", "1,2,3")],
    "numbered": [
        ("3", "1. A\n2. B"),
        ("3", "A\nB\nC"),
        ("2", "1. A\n2. B\nAll"),
        ("2", "1.\n2. B"),
    ],
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_met_by_what_it_says_and_by_nothing_else(name):
    for expected, answer in RIGHT[name]:
        assert RULES[name](expected, answer), answer
    for expected, answer in WRONG[name]:
        assert not RULES[name](expected, answer), answer


def test_there_are_forty_questions_ten_of_each_kind_that_their_own_text_does_not_answer():
    assert Counter(one.kind for one in GENERAL_QUESTIONS) == dict.fromkeys(KINDS, 10)
    assert len({one.prompt for one in GENERAL_QUESTIONS}) == 40
    for one in GENERAL_QUESTIONS:
        assert not one.is_met(""), one
        assert not one.is_met(one.prompt) or one.kind == "sentence", one


def test_the_task_grades_answers_by_their_questions_and_by_kind():
    task = get_task("general40")
    items = task.items(None, "test")
    right = {item.id: item.target["expected"] for item in items if item.target["kind"] == "capital"}
    answers = {item.id: right.get(item.id, "no idea") for item in items}
    from dualtoken.eval import ScoringContext

    score = task.score(items, answers, ScoringContext())
    assert score.metrics["kind/capital"] == 100.0
    assert score.metrics["accuracy"] == pytest.approx(100.0 * (10 + 1) / 40)  # "no idea" begins with no
