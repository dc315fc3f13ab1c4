"""The wording of benchmarks that have no prompt of their own; published tables use it.

Source: haotian-liu/LLaVA, docs/Evaluation.md; MMMU's own configuration of LLaVA-1.5 has the same sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...common.errors import shown

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."


def written(text: Any) -> str:
    """What a file gives as a text; a number is written out. TypeError for null and what has no words."""
    if isinstance(text, bool) or not isinstance(text, str | int | float) or text != text:
        raise TypeError(f"{shown(text)} stands where a text is meant")
    return str(text)


def short_answer(question: str) -> str:
    """A question that wants a word or a phrase."""
    return f"{written(question)}\n{SHORT_ANSWER}"


def option_letter(question: str, options: Mapping[str, str]) -> str:
    """A question with its options, one on a line, that wants a letter."""
    lines = [
        written(question),
        *(f"{letter}. {written(text)}" for letter, text in options.items()),
        OPTION_LETTER,
    ]
    return "\n".join(lines)
