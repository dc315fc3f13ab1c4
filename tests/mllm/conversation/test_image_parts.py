"""Image parts as other libraries write them become the one form."""

import pytest
from PIL import Image

from dualtoken.common.errors import UserError
from dualtoken.mllm.conversation.messages import normalise_messages

PICTURE = Image.new("RGB", (4, 4))
URL = "data:image/png;base64,AAAA"


def normalised(part: object) -> dict:
    (message,) = normalise_messages([{"role": "user", "content": [part]}])
    return message["content"][0]


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ({"type": "image", "image": PICTURE}, PICTURE),
        ({"type": "image", "url": "a.png"}, "a.png"),
        ({"type": "image", "path": "a.png"}, "a.png"),
        ({"type": "image", "base64": "AAAA"}, "data:;base64,AAAA"),
        ({"type": "image", "base64": URL}, URL),
        ({"type": "image", "base64": URL.upper()}, URL.upper()),
        ({"type": "image", "base64": f" {URL}"}, f" {URL}"),
        ({"type": "image", "image": {"bytes": b"png", "path": None}}, b"png"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, URL),
        ({"type": "image_url", "image_url": URL}, URL),
        ({"type": "input_image", "image_url": URL}, URL),
        ({"type": "image", "source": {"type": "base64", "data": "AAAA"}}, "data:;base64,AAAA"),
    ],
)
def test_each_spelling_of_an_image(part: dict, source: object):
    assert normalised(part) == {"type": "image", "image": source}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url"},
        {"type": "image_url", "image_url": {"url": None}},
        {"type": "image", "image": {}},
    ],
)
def test_a_part_without_an_image_is_named(part: dict):
    with pytest.raises(UserError, match="message 1, part 1"):
        normalised(part)


def test_what_is_nested_without_end_ends():
    nested: dict = {"url": "a.png"}
    for _ in range(10_000):
        nested = {"image": nested}
    with pytest.raises(UserError):
        normalised({"type": "image", **nested})


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_texts_may_be_written_as_in_openais_responses(kind):
    assert normalised({"type": kind, "text": "hi"}) == {"type": "text", "text": "hi"}
