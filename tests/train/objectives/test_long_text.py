"""Long texts are split: every token is a target once, dialogues part at turns, and nothing else is cut."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from dualtoken.common.errors import UserError
from dualtoken.data_pipelines.records import Record, assistant, image_part, user
from dualtoken.mllm.conversation.collation import IGNORE, EncodedRecord
from dualtoken.train.objectives.long_text import MOST_CHARACTERS, can_split, split_text


def encode(messages: Sequence[dict[str, Any]]) -> EncodedRecord:
    """A token for each character, one around each turn; answers are targets."""
    ids: list[int] = []
    labels: list[int] = []
    for message in messages:
        text = [ord(one) for one in message["content"][0]["text"]]
        ids += [1, *text, 2]
        labels += [IGNORE, *text, 2] if message["role"] == "assistant" else [IGNORE] * (len(text) + 2)
    return EncodedRecord(np.array(ids), np.array(labels))


def text(pieces: Sequence[EncodedRecord]) -> list[str]:
    return ["".join(chr(one) if one > 2 else " " for one in piece.input_ids) for piece in pieces]


@pytest.mark.parametrize("length", [2, 3, 10, 64, 101, 102])
def test_every_token_of_a_document_is_a_target_once(length: int) -> None:
    messages = [assistant("".join(chr(100 + n) for n in range(100)))]
    example = encode(messages)
    pieces = split_text(messages, example, length, encode)
    assert all(2 <= len(piece) <= length for piece in pieces)
    assert np.concatenate([piece.labels[1:] for piece in pieces]).tolist() == example.labels[1:].tolist()
    assert all(a.input_ids[-1] == b.input_ids[0] for a, b in pairwise(pieces))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1
    assert (len(pieces) == 1) == (length >= len(example))


def test_a_dialogue_parts_before_a_users_turn_and_keeps_its_system_turn() -> None:
    system = {**user("S"), "role": "system"}
    messages = [system, *(turn for n in "abcde" for turn in (user(n * 3), assistant(n.upper() * 3)))]
    pieces = split_text(messages, encode(messages), 26, encode)
    assert text(pieces) == [" S  aaa  AAA  bbb  BBB ", " S  ccc  CCC  ddd  DDD ", " S  eee  EEE "]
    without = messages[1:]
    assert text(split_text(without, encode(without), 10, encode)) == [
        f" {n * 3}  {n.upper() * 3} " for n in "abcde"
    ]
    with pytest.raises(UserError, match="question 1 and its answer have 13 tokens"):
        split_text(messages, encode(messages), 12, encode)


def test_only_text_whose_turns_are_independent_is_split() -> None:
    twice = [user("?"), assistant("x")] * 2
    assert can_split(Record("a", twice))
    assert not can_split(Record("a", twice, {"ordered": True}))
    assert not can_split(Record("a", twice[:2]))
    assert can_split(Record("a", [assistant("x")]))
    assert not can_split(Record("a", [user(image_part("x.png"), "?"), assistant("x")]))
    assert not can_split(Record("a", [assistant("x" * (MOST_CHARACTERS + 1))]))
