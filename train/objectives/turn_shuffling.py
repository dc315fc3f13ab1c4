"""Questions about the same images in another order at every draw."""

from __future__ import annotations

import random
from typing import Any

from ...data_pipelines.records import text_part


def shuffle_question_turns(messages: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """The same question-answer pairs in another order, if the record asks several questions about its
    first turn's images.

    The images stay at the head of whatever question now comes first, a system turn before them. Records of
    one turn, and records with images or roles elsewhere, come back as they are.
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
