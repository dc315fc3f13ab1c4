"""The record schema: accepted records, and the reasons for which others are refused."""

import json

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
from dualtoken.data_pipelines.shards.sample_codec import decode_record, encode_record

PICTURE = image_part(Image.new("RGB", (8, 8)))
CODES = np.zeros((2, 2, 3), np.int64)


def test_images_are_in_the_first_turn_only():
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
        ([{"role": "user", "content": 3}], "list of parts"),
        ([{"role": "user", "content": []}], "empty list"),
        ([{"role": "user", "content": [{"type": "text"}]}], "needs a string"),
        ([{"role": "user", "content": [{"type": "table"}]}], "allowed: text, image"),
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


DEEP: dict = {}
for _ in range(5000):
    DEEP = {"deeper": DEEP}


@pytest.mark.parametrize(
    ("record_id", "metadata", "reason"),
    [
        ("", {}, "non-empty"),
        (None, {}, "non-empty"),
        (7, {}, "non-empty"),
        ("half \udce9", {}, "UTF-8"),
        ("nul \0", {}, "NUL"),
        ("x" * 100_000, {}, "at most 4096"),
        ("r", [], "object"),
        ("r", "caption", "object"),
        ("r", {"note": "half \ud83d"}, "surrogate"),
        ("r", {"half \ud83d": 1}, "surrogate"),
        ("r", DEEP, "deeper than 60"),
        ("r", {"many": [[[]]] * 40, "deep": json.loads("[" * 62 + "]" * 62)}, "deeper than 60"),
        ("r", {"number": 10**5000}, "digits"),
        ("r", {"array": CODES}, "not JSON serializable"),
    ],
)
def test_ids_and_metadata_can_be_stored(record_id, metadata, reason):
    with pytest.raises(RecordError, match=reason) as caught:
        Record(record_id, [user("q"), assistant("a")], metadata).validate()
    assert len(str(caught.value)) <= 300


def test_metadata_equal_what_is_read_back():
    given = {"similarity": float("nan"), "sizes": (1, 2), 5: float("inf"), "deep": [[[{}]]]}
    record = Record("r", [user("q"), assistant("a")], given).validate()
    assert record.metadata == {"similarity": None, "sizes": [1, 2], "5": None, "deep": [[[{}]]]}
    assert decode_record(dict(encode_record(record).members)) == record
    assert Record("r", [user("q")], None).validate().metadata == {}  # type: ignore[arg-type]


def test_messages_are_stored_in_normal_form():
    said = {"role": "user", "content": "q", "name": {1, 2}}
    part = {"type": "image", "path": PICTURE["image"], "width": 8}
    record = Record("r", [said, {"role": "assistant", "content": ["a", part]}]).validate()
    assert record.messages == [user("q"), assistant("a", PICTURE)]
    stored = dict(encode_record(record).members)
    assert decode_record(stored).texts() == ["q", "a"]


@pytest.mark.parametrize(
    "stored",
    [
        b"[]",
        b"null",
        b"7",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"id": "r", "messages": null}',
        b'{"id": "r", "messages": [{"role": "user", "content": "\\ud83d"}], "metadata": {}}',
        b'{"id": 7, "messages": [{"role": "user", "content": "q"}], "metadata": {}}',
        b'{"id": "r", "messages": [{"role": "user", "content": "q"}], "metadata": []}',
        b'{"id": "r", "messages": [{"role": "user", "content": "q"}], "metadata": {"n": 1'
        + b"0" * 5000
        + b"}}",
    ],
)
def test_an_invalid_stored_record_is_refused_with_the_reason(stored):
    with pytest.raises(ValueError, match=r".") as caught:
        decode_record({"json": stored})
    assert len(str(caught.value)) <= 300


def test_null_in_a_stored_record_means_absent():
    stored = b'{"id": "r", "messages": [{"role": "user", "content": "q"}], "metadata": null, "x": NaN}'
    assert decode_record({"json": stored}).metadata == {}
