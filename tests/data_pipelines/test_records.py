"""The record schema: what is accepted, and that a broken record is told apart with its reason."""

import numpy as np
import pytest
from PIL import Image

from dualtoken.data_pipelines.records import (
    Record,
    RecordError,
    assistant,
    image_part,
    question_turns,
    user,
    with_image_parts,
)

PICTURE = image_part(Image.new("RGB", (8, 8)))
CODES = np.zeros((2, 2, 3), np.int64)


def test_images_stand_in_the_first_turn_only():
    messages = question_turns([PICTURE, PICTURE], [("q1", "a1"), ("q2", "a2")])
    record = Record("r", messages).validate()
    assert [len(m["content"]) for m in messages] == [3, 1, 1, 1]
    assert record.texts() == ["q1", "a1", "q2", "a2"]
    assert len(record.image_parts()) == 2


def test_image_parts_can_be_replaced():
    record = Record("r", [user(PICTURE, "q"), assistant("a", PICTURE)])
    changed = with_image_parts(record, [{"type": "image", "image": "x"}, {"type": "image", "image": "y"}])
    assert [part["image"] for part in changed.image_parts()] == ["x", "y"]
    assert record.image_parts()[0] is PICTURE, "the record itself must not change"
    assert changed.texts() == record.texts()


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "no messages"),
        ([{"role": "robot", "content": [{"type": "text", "text": "x"}]}], "role 'robot'"),
        ([{"role": "user", "content": "text"}], "list of parts"),
        ([{"role": "user", "content": []}], "list of parts"),
        ([{"role": "user", "content": [{"type": "text"}]}], "needs a string"),
        ([{"role": "user", "content": [{"type": "sound"}]}], "'text' or 'image'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "either 'image'"),
        ([{"role": "user", "content": [{"type": "image", "pixel_codes": CODES}]}], "either 'image'"),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": 1, "pixel_codes": CODES, "semantic_codes": CODES},
                    ],
                }
            ],
            "either 'image'",
        ),
    ],
)
def test_a_broken_record_is_refused_with_its_reason(messages, reason):
    with pytest.raises(RecordError, match=reason):
        Record("r", messages).validate()


def test_codes_are_an_image():
    part = {"type": "image", "pixel_codes": CODES, "semantic_codes": CODES}
    Record("r", [user(part)]).validate()
