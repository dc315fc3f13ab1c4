"""Open answers of MMMU: candidates are cut out of the text; one that equals or holds the key is enough.

Source of all rules here: MMMU-Benchmark/MMMU, eval/eval_utils.py (parse_open_response, normalize_str,
extract_numbers, eval_open).
"""

import re
from collections.abc import Sequence

Normal = str | float

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_MARKS = {":", ",", ".", "!", "?", ";", "'"}
# The text is lower-case by then, so the part before the bar never matches: answers are cut at line breaks
# only.
_SENTENCE_END = re.compile(r"\.\s(?=[A-Z])|\n")
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")


def normalise(text: str) -> list[Normal]:
    """A number rounded to two decimals (commas dropped), else the lower-cased text.

    A single character becomes two candidates, with a blank before and after it, so that it is not found
    inside words.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def numbers_in(text: str) -> list[str]:
    """All numbers in a text: with thousands commas, in scientific notation, and plain, in this order."""
    return [number for pattern in (_WITH_COMMAS, _SCIENTIFIC, _PLAIN) for number in pattern.findall(text)]


def key_parts(answer: str) -> list[str]:
    """Where the answer is likely to be: of each line the shortest tail after a word such as "is" or "answer".

    An equals sign counts in the last line. Without any tail it is the complete answer, lower-cased.
    """
    text = answer.strip().strip(".").lower()
    lines = _SENTENCE_END.split(text)
    parts = []
    for number, line in enumerate(lines, start=1):
        indicators = (*_INDICATORS, "=") if number == len(lines) else _INDICATORS
        tails = [line.split(word)[-1].strip() for word in indicators if word in line]
        shortest = _shortest(tails)
        if shortest and shortest not in _MARKS:
            parts.append(shortest)
    return parts or [text]


def _shortest(tails: Sequence[str]) -> str:
    """The shortest tail, the first of equals; as in the official script, an empty one is replaced."""
    best = ""
    for tail in tails:
        if not best or len(tail) < len(best):
            best = tail
    return best


def open_candidates(answer: str) -> list[Normal]:
    """The candidate answers in a free answer: the key parts and every number in them, normalised."""
    parts = key_parts(answer)
    texts = [*parts, *(number for part in parts for number in numbers_in(part))]
    return [value for text in texts for value in normalise(text)]


def open_is_right(answer: str, keys: str | Sequence[str]) -> bool:
    """Whether a free answer holds one of the keys: a number equal to a key, or a text that contains a key.

    An empty answer yields the empty candidate, which is wrong unless a key is empty.
    """
    wanted = [value for key in ([keys] if isinstance(keys, str) else keys) for value in normalise(key)]
    texts = [value for value in wanted if isinstance(value, str)]
    for candidate in open_candidates(answer):
        if isinstance(candidate, str):
            if any(text in candidate for text in texts):
                return True
        elif candidate in wanted:
            return True
    return False
