"""Open answers of MMMU: an answer is correct if one of the candidates in it equals or contains the key.

Source: MMMU-Benchmark/MMMU, eval/eval_utils.py (parse_open_response, normalize_str, extract_numbers,
eval_open).
"""

import re
from collections.abc import Sequence

Normal = str | float

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_MARKS = {":", ",", ".", "!", "?", ";", "'"}
# The text is lower-case by then, so the part before the bar never matches: only line breaks split answers.
_SENTENCE_END = re.compile(r"\.\s(?=[A-Z])|\n")
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")


def normalise(text: str) -> list[Normal]:
    """A number rounded to two decimals (commas dropped), else the lower-cased string.

    A single character becomes two, with a blank before and after it, so that it is not found inside words.
    """
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def numbers_in(text: str) -> list[str]:
    """All numbers in a string: with thousands commas, in scientific notation, and plain, in this order."""
    return [number for pattern in (_WITH_COMMAS, _SCIENTIFIC, _PLAIN) for number in pattern.findall(text)]


def key_parts(answer: str) -> list[str]:
    """The likely parts of an answer: the shortest tail of each line after a word such as "is" or "answer".

    In the last line also after an equals sign. Without any tail the complete answer, lower-cased.
    """
    text = answer.strip().strip(".").lower()
    lines = _SENTENCE_END.split(text)
    parts = []
    for number, line in enumerate(lines, start=1):
        indicators = (*_INDICATORS, "=") if number == len(lines) else _INDICATORS
        shortest = ""
        for tail in (line.split(word)[-1].strip() for word in indicators if word in line):
            if not shortest or len(tail) < len(shortest):  # as in the official script, "" is replaced
                shortest = tail
        if shortest and shortest not in _MARKS:
            parts.append(shortest)
    return parts or [text]


def open_candidates(answer: str) -> list[Normal]:
    """The candidates in an open answer: its `key_parts` and every number in them, normalised."""
    parts = key_parts(answer)
    texts = [*parts, *(number for part in parts for number in numbers_in(part))]
    return [value for text in texts for value in normalise(text)]


def open_is_right(answer: str, keys: str | Sequence[str]) -> bool:
    """Whether an open answer has a candidate that equals a key (a number) or contains one (a string).

    An empty answer yields the empty candidate, which is wrong unless a key is empty.
    """
    wanted = [value for key in ([keys] if isinstance(keys, str) else keys) for value in normalise(key)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(text in candidate for text in texts) if isinstance(candidate, str) else candidate in wanted
        for candidate in open_candidates(answer)
    )
