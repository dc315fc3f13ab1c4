"""The lmms-eval plug-in: its requests become our conversations and settings; batched equals single."""

import pytest
from PIL import Image

from dualtoken.eval import get_benchmark
from dualtoken.eval.lmms import as_conversation, cut, generation_settings
from dualtoken.tokenizer import UserError

PICTURE = Image.new("RGB", (8, 8))


def test_messages_are_translated():
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "url": PICTURE}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
    ]
    first, second = as_conversation(messages)
    assert [part["type"] for part in first["content"]] == ["text", "image", "text"]
    assert first["content"][1]["image"] is PICTURE
    assert second == {"role": "assistant", "content": [{"type": "text", "text": "This."}]}
    with pytest.raises(UserError, match="not video"):
        as_conversation([{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}])


@pytest.mark.parametrize(
    ("given", "settings", "stops"),
    [
        ({}, {"max_new_tokens": 1024, "do_sample": False}, []),
        (
            {"max_new_tokens": 16, "temperature": 0, "top_p": None, "do_sample": False, "until": ["\n\n"]},
            {"max_new_tokens": 16, "do_sample": False},
            ["\n\n"],
        ),
        (
            {"temperature": 0.7, "top_p": 0.9, "until": "</s>", "image_aspect_ratio": "original"},
            {"max_new_tokens": 1024, "temperature": 0.7, "top_p": 0.9, "do_sample": True},
            ["</s>"],
        ),
        ({"temperature": 0.7, "do_sample": False}, {"max_new_tokens": 1024, "do_sample": False}, []),
    ],
)
def test_settings_are_translated(given, settings, stops):
    assert generation_settings(given) == (settings, stops)


def test_text_ends_before_the_first_stop_string():
    assert cut("red. Next: blue", ["Next", "."]) == "red"
    assert cut("red", ["."]) == "red"


def test_batched_answers_equal_single_ones_and_ours():
    pytest.importorskip("lmms_eval")
    from lmms_eval.api.instance import Instance

    from dualtoken.eval.lmms_model import DualTokenLmms

    items = get_benchmark("easyvqa").load(None, "heldout")[:5]

    def to_messages(item):
        images = [{"type": "image", "url": image} for image in item.images]
        return [{"role": "user", "content": [*images, {"type": "text", "text": item.prompt}]}]

    def request(kind, *arguments):
        return Instance(kind, arguments, 0, {"task": "t", "doc_id": 0, "repeats": 1})

    asked = [
        request("generate_until", item.prompt, to_messages, {"max_new_tokens": 6 + n % 2}, n, "t", "test")
        for n, item in enumerate(items)
    ]
    model = DualTokenLmms("nano", batch_size=4, device="cpu")
    model.task_dict = {"t": {"test": items}}
    answers = [result.text for result in model.generate_until(asked)]
    assert answers == [model.pipeline.answer(list(item.images), item.prompt, 6) for item in items]
    likelihoods = model.loglikelihood(
        [
            request("loglikelihood", items[0].prompt, text, lambda item: item.images, 0, "t", "test")
            for text in (answers[0], "qzqz")
        ]
    )
    assert likelihoods[0][1]
    assert likelihoods[0][0] > likelihoods[1][0]
