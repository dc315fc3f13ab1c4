"""Prompts for benchmarks that publish questions without a prompt, as in published tables.

Source: haotian-liu/LLaVA, docs/Evaluation.md; MMMU's own configuration of LLaVA-1.5 has the same sentences.
"""

from collections.abc import Mapping
from typing import Any

from ...common.errors import shown

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."


def as_text(value: Any) -> str:
    """A string or a number of a file as a string. TypeError for any other value."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        raise TypeError(f"{shown(value)} is given where a string is expected")
    return str(value)


def short_answer(question: str) -> str:
    """A question with the request for a word or a phrase."""
    return f"{as_text(question)}\n{SHORT_ANSWER}"


def option_letter(question: str, options: Mapping[str, str]) -> str:
    """A question with its options, one on a line, and the request for a letter."""
    lines = [f"{letter}. {as_text(text)}" for letter, text in options.items()]
    return "\n".join([as_text(question), *lines, OPTION_LETTER])
