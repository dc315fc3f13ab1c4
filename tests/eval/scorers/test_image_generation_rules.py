"""GenEval's and DPG-Bench's rules, case by case."""

from __future__ import annotations

import numpy as np
import pytest

from dualtoken.eval.scorers.dpg import image_score
from dualtoken.eval.scorers.geneval import Detection, is_correct, kept_objects, relative_position, summary


def dog(score: float = 0.9, box=(0, 0, 10, 10), name: str = "dog") -> Detection:
    return Detection(name, score, box)


def judged(metadata: dict, *detections: Detection, colors=None) -> bool:
    def named(found, name):
        return [colors[detection.box] for detection in found]

    return is_correct(kept_objects(detections, metadata.get("tag", "")), metadata, named)


ONE_DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
TWO_DOGS = {
    "tag": "counting",
    "include": [{"class": "dog", "count": 2}],
    "exclude": [{"class": "dog", "count": 3}],
}


def test_thresholds_are_strict_and_higher_for_counting() -> None:
    assert judged(ONE_DOG, dog(0.31))
    assert not judged(ONE_DOG, dog(0.3))
    assert not judged(ONE_DOG, dog(name="cat"))
    assert not judged(TWO_DOGS, dog(0.95), dog(0.9))
    assert judged(TWO_DOGS, dog(0.95), dog(0.91))


def test_counts_are_exact_and_need_a_high_confidence() -> None:
    assert not judged(TWO_DOGS, dog(0.95))
    assert not judged(TWO_DOGS, *[dog(0.95)] * 3)
    assert judged(TWO_DOGS, dog(0.95), dog(0.95), dog(0.85))  # the third is not sure enough to count
    assert judged(ONE_DOG, *[dog()] * 5)  # nothing excludes more of them


def test_the_16_most_confident_of_a_class_are_kept() -> None:
    kept = kept_objects([dog(0.5 + n / 100) for n in range(20)], "single_object")["dog"]
    assert [round(found.score, 2) for found in kept] == [round(0.69 - n / 100, 2) for n in range(16)]


def test_the_color_of_the_most_confident_object_counts() -> None:
    metadata = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
    red, blue = (0, 0, 1, 1), (2, 2, 3, 3)
    colors = {red: "red", blue: "blue"}
    assert judged(metadata, dog(0.9, red), dog(0.8, blue), colors=colors)
    assert not judged(metadata, dog(0.8, red), dog(0.9, blue), colors=colors)


def test_two_colors_belong_to_the_correct_objects() -> None:
    metadata = {
        "tag": "color_attr",
        "include": [
            {"class": "dog", "count": 1, "color": "red"},
            {"class": "cat", "count": 1, "color": "blue"},
        ],
    }
    first, second = (0, 0, 1, 1), (2, 2, 3, 3)
    shown = [dog(0.9, first), dog(0.9, second, "cat")]
    assert judged(metadata, *shown, colors={first: "red", second: "blue"})
    assert not judged(metadata, *shown, colors={first: "blue", second: "red"})


@pytest.mark.parametrize(
    ("box", "relations"),
    [
        ((-30, 0, -20, 10), {"left of"}),
        ((30, 0, 40, 10), {"right of"}),
        ((0, -30, 10, -20), {"above"}),
        ((0, 30, 10, 40), {"below"}),
        ((30, 30, 40, 40), {"right of", "below"}),
        ((1, 1, 11, 11), set()),  # within a tenth of both sizes
        ((0, 0, 10, 10), set()),
        ((3, 0, 13, 10), set()),  # beyond the margin by a third of the offset only
    ],
)
def test_relative_positions(box, relations) -> None:
    assert relative_position(box, (0, 0, 10, 10)) == relations


def test_positions_refer_to_the_object_named_before() -> None:
    metadata = {
        "tag": "position",
        "include": [
            {"class": "cow", "count": 1},
            {"class": "dog", "count": 1, "position": ["left of", 0]},
        ],
    }
    cow = dog(0.9, (50, 0, 60, 10), "cow")
    assert judged(metadata, dog(), cow)
    assert not judged(metadata, dog(box=(90, 0, 99, 10)), cow)
    assert not judged(metadata, dog())  # no cow to be left of
    assert not judged(metadata, cow)


def test_the_overall_score_is_the_mean_of_the_tags() -> None:
    found = summary({"colors": [True], "counting": [False, False, False]})
    assert found == {"colors": 1, "counting": 0, "overall": 0.5}


def test_a_question_of_dpg_counts_only_with_its_parents() -> None:
    parents = {1: [], 2: [1], 3: [2]}
    assert image_score({1: True, 2: True, 3: True}, parents) == 1
    assert image_score({1: True, 2: False, 3: True}, parents) == pytest.approx(1 / 3)
    assert (
        image_score({1: False, 2: True, 3: True}, parents) == 0
    )  # what was set to 0 takes its children along
    # In the official order a parent that comes later still stands as it was answered.
    assert image_score({1: False, 2: True, 3: True}, {3: [2], 2: [1], 1: []}) == pytest.approx(1 / 3)


def test_boxes_may_be_arrays() -> None:
    assert relative_position(tuple(np.array([30, 0, 40, 10])), (0, 0, 10, 10)) == {"right of"}
