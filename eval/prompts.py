"""The wording of benchmarks that have no prompt of their own; published tables use it.

Source: haotian-liu/LLaVA, docs/Evaluation.md; MMMU's own configuration of LLaVA-1.5 has the same sentences.
"""

from __future__ import annotations

from collections.abc import Mapping

SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."


def short_answer(question: str) -> str:
    """A question that wants a word or a phrase."""
    return f"{question}\n{SHORT_ANSWER}"


def option_letter(question: str, options: Mapping[str, str]) -> str:
    """A question with its options, one on a line, that wants a letter."""
    lines = [question, *(f"{letter}. {text}" for letter, text in options.items()), OPTION_LETTER]
    return "\n".join(lines)
