"""Shuffle the questions about the same images."""

from __future__ import annotations

import random
from typing import Any

from ...data_pipelines.records import text_part


def shuffle_question_turns(messages: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Shuffle the question-answer pairs of a record whose images are all in the first turn.

    The images move to the first question; a system turn stays first. Records of one turn, with images in
    other turns, or with other orders of roles are returned unchanged.
    """
    start = 1 if messages[0]["role"] == "system" else 0
    turns = messages[start:]
    if len(turns) < 4 or [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2):
        return messages
    images = [part for part in turns[0]["content"] if part["type"] == "image"]
    everywhere = [part for turn in messages for part in turn["content"] if part["type"] == "image"]
    if not images or len(everywhere) > len(images):
        return messages
    pairs = [turns[i : i + 2] for i in range(0, len(turns), 2)]
    first_question = [part for part in turns[0]["content"] if part["type"] != "image"] or [text_part("")]
    pairs[0] = [{**turns[0], "content": first_question}, turns[1]]
    rng.shuffle(pairs)
    head = pairs[0][0]
    pairs[0] = [{**head, "content": images + head["content"]}, pairs[0][1]]
    return [*messages[:start], *(message for pair in pairs for message in pair)]
