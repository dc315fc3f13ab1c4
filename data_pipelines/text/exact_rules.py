"""Exact rules for short answers to general questions: each is met or not, without a judge.

Every rule is a function of (expected, answer); both are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_SENTENCE_END = re.compile(r"[.!?]+(?=[\"'”’)]*(?:\s|$))")
_FEWEST_WORDS = 4


def names(expected: str, answer: str) -> bool:
    """The answer contains the words `expected`, in upper or lower case."""
    return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", answer, re.IGNORECASE) is not None


def states(expected: str, answer: str) -> bool:
    """The answer contains the number `expected`, not as a part of a longer one."""
    return re.search(rf"(?<![\d.,-]){re.escape(expected)}(?![\d]|[.,]\d)", answer) is not None


def one_sentence(expected: str, answer: str) -> bool:
    """The answer is one finished sentence of at least four words, with the word `expected` in it."""
    text = answer.strip()
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    finished = len(ends) == 1 and not text[ends[0] :].strip("\"'”’) ")
    return finished and "\n" not in text and len(text.split()) >= _FEWEST_WORDS and _has_word(expected, text)


def begins(expected: str, answer: str) -> bool:
    """The answer begins with the words `expected`, in upper or lower case."""
    return re.match(rf"[\"'“]?{re.escape(expected)}(?!\w)", answer.strip(), re.IGNORECASE) is not None


def ends(expected: str, answer: str) -> bool:
    """The answer ends with `expected`."""
    return answer.strip().rstrip("\"'”’").endswith(expected)


def equals(expected: str, answer: str) -> bool:
    """The answer is `expected`, apart from white space around it and a full stop."""
    return answer.strip().rstrip(".") == expected


def numbered(expected: str, answer: str) -> bool:
    """The answer is a list of `expected` lines, numbered from 1, with something on each."""
    lines = [line.strip() for line in answer.strip().splitlines() if line.strip()]
    matches = [re.match(r"(\d+)[.)]\s*\S", line) for line in lines]
    return [match and int(match[1]) for match in matches] == list(range(1, int(expected) + 1))


def _has_word(word: str, text: str) -> bool:
    """Whether a word occurs, in the singular or the plural."""
    return names(word, text) or names(f"{word}s", text)


#: The rules by name.
RULES: dict[str, Callable[[str, str], bool]] = {
    rule.__name__: rule for rule in (names, states, one_sentence, begins, ends, equals, numbered)
}
