"""One template for every task: roles, targets, dropped prompts."""

from typing import Any

import pytest

from dualtoken.mllm.conversation.messages import normalise_messages
from dualtoken.mllm.conversation.rendering import (
    drop_prompt,
    is_text_to_image,
    render,
    unconditional_prompt,
)
from dualtoken.tokenizer import UserError


def test_targets_are_the_assistants_turns_only():
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "how many?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
    ]
    targets = [segment.text or segment.special for segment in render(messages) if segment.is_target]
    assert targets == ["Two.", "<|end|>", "yes", "<|end|>"]


def test_a_target_image_is_opened_and_closed_by_targets(records):
    segments = render(records["text_to_image"])
    tail = segments[-5:]
    assert [segment.special for segment in tail] == [
        "<|assistant|>",
        "<|image_start|>",
        None,
        "<|image_end|>",
        "<|end|>",
    ]
    assert [segment.is_target for segment in tail] == [False, True, True, True, True]


def test_generation_prompt_is_a_prefix_of_the_training_sequence(records):
    prompt = render(records["question"][:1], add_generation_prompt=True)
    assert render(records["question"])[: len(prompt)] == prompt


def test_strings_and_urls_are_normalised():
    (message,) = normalise_messages(
        [{"role": "user", "content": ["hello", {"type": "image", "url": "a.png"}]}]
    )
    assert message["content"] == [{"type": "text", "text": "hello"}, {"type": "image", "image": "a.png"}]


def test_only_image_prompts_are_dropped(records):
    assert is_text_to_image(records["text_to_image"])
    dropped = drop_prompt(records["text_to_image"])
    assert dropped[0] == unconditional_prompt()[0]
    assert dropped[1] == normalise_messages(records["text_to_image"])[1]
    for kind in ("question", "text", "interleaved"):
        assert not is_text_to_image(records[kind])
        assert drop_prompt(records[kind]) == normalise_messages(records[kind])


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "empty"),
        ("hello", "list of messages"),
        (None, "list of messages"),
        (["hello"], "message 1 is 'hello'"),
        ([{"content": "x"}], "message 1"),
        ([{"role": "user", "content": None}], "neither may be null"),
        ([{"role": "robot", "content": "x"}], "role 'robot'"),
        ([{"role": ["user"], "content": "x"}], "role .'user'."),
        ([{"role": "user", "content": 3}], "message 1"),
        ([{"role": "user", "content": []}], "empty list"),
        ([{"role": "user", "content": [3]}], "part 1 needs a 'type'"),
        ([{"role": "user", "content": ["q", {"type": "text"}]}], "part 2"),
        ([{"role": "user", "content": [{"type": "text", "text": None}]}], "part 1"),
        ([{"role": "user", "content": "half \ud83d"}], "surrogate"),
        ([{"role": "user", "content": "nul \0"}], "NUL"),
        ([{"role": "user", "content": [{"type": "sound"}]}], "audio, which is not supported"),
        (
            [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}]}],
            "'video' is video, which is not",
        ),
        ([{"role": "user", "content": [{"type": "video_url", "image": "a.png"}]}], "is video"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "is audio"),
        ([{"role": "user", "content": "<video>\nWhat happens?"}], "mark <video> is video"),
        ([{"role": "user", "content": "What is said? <AUDIO> "}], "mark <audio> is audio"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "not 3"),
        ([{"role": "assistant", "content": [{"type": "unconditional"}]}], "unconditional"),
        ([{"role": "user", "content": [{"type": "image"}]}], "'image'"),
        ([{"role": "user", "content": [{"type": "image", "pixel_codes": 1}]}], "semantic_codes"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": "x", "pixel_codes": 1, "semantic_codes": 1}],
                }
            ],
            "either 'image'",
        ),
    ],
)
def test_malformed_conversations_are_named(messages, named):
    with pytest.raises(UserError, match=named):
        normalise_messages(messages)


SYSTEM: dict[str, Any] = {"role": "system", "content": "Be brief."}
ASK: dict[str, Any] = {"role": "user", "content": "how many?"}
REPLY: dict[str, Any] = {"role": "assistant", "content": "Two."}


@pytest.mark.parametrize(
    ("messages", "same_as"),
    [
        ([SYSTEM, ASK, REPLY], [{**ASK, "content": "Be brief.\n\nhow many?"}, REPLY]),
        ([ASK, REPLY, SYSTEM, ASK], [ASK, REPLY, {**ASK, "content": "Be brief.\n\nhow many?"}]),
        ([SYSTEM, SYSTEM, ASK], [{**ASK, "content": "Be brief.\n\nBe brief.\n\nhow many?"}]),
        ([SYSTEM, REPLY], [{**ASK, "content": "Be brief."}, REPLY]),
        ([ASK, SYSTEM], [ASK, {**ASK, "content": "Be brief."}]),
        ([{**SYSTEM, "content": ""}, ASK, REPLY], [ASK, REPLY]),
    ],
)
def test_without_a_system_role_the_text_goes_before_the_users(messages, same_as):
    assert render(messages) == render(same_as)


def test_a_system_turn_before_an_image_keeps_its_distance():
    picture = {"type": "image", "image": "a.png"}
    segments = render([SYSTEM, {"role": "user", "content": [picture, "what?"]}])
    assert [segment.text for segment in segments if segment.text] == ["Be brief.\n\n", "what?"]
    assert not any(segment.is_target for segment in segments)


def test_a_system_turn_belongs_to_an_images_prompt(records):
    record = [SYSTEM, *records["text_to_image"]]
    assert is_text_to_image(record)
    assert drop_prompt(record) == drop_prompt(records["text_to_image"])


@pytest.mark.parametrize(
    "text", ["what is <video> in HTML?", "<video><source></video>", "<videos>", "a <b> c"]
)
def test_what_is_only_said_of_videos_is_text(text):
    assert normalise_messages([{"role": "user", "content": text}])[0]["content"][0]["text"] == text


def test_a_text_of_any_kind_is_checked_quickly():
    for text in (
        "\n" * 1_000_000,
        "\n<video>" * 100_000 + "</video>" + "\n" * 1_000_000,
        " " * 1_000_000 + "<",
    ):
        normalise_messages([{"role": "user", "content": "x" + text + "x"}])
