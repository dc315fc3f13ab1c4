"""One template for every task: roles, targets, dropped prompts."""

from typing import Any

import pytest

from dualtoken.mllm.conversation import (
    drop_prompt,
    is_text_to_image,
    normalise_messages,
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
    segments = render(records["drawing"])
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


def test_only_drawing_prompts_are_dropped(records):
    assert is_text_to_image(records["drawing"])
    dropped = drop_prompt(records["drawing"])
    assert dropped[0] == unconditional_prompt()[0]
    assert dropped[1] == normalise_messages(records["drawing"])[1]
    for kind in ("question", "text", "interleaved"):
        assert not is_text_to_image(records[kind])
        assert drop_prompt(records[kind]) == normalise_messages(records[kind])


@pytest.mark.parametrize(
    ("messages", "named"),
    [
        ([], "empty"),
        ("hello", "list of messages"),
        ([{"content": "x"}], "message 0"),
        ([{"role": "system", "content": "x"}], "role 'system'"),
        ([{"role": "user", "content": 3}], "message 0"),
        ([{"role": "user", "content": [{"type": "video"}]}], "type 'video'"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part 0"),
        ([{"role": "user", "content": [{"type": "image"}]}], "'image'"),
        ([{"role": "user", "content": [{"type": "image", "pixel_codes": 1}]}], "semantic_codes"),
    ],
)
def test_malformed_conversations_are_named(messages, named):
    with pytest.raises(UserError, match=named):
        normalise_messages(messages)
