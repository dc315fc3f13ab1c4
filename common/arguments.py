"""Types of command-line arguments for argparse, which shows the message of what they refuse."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from .errors import UserError, shown
from .paths import user_path
from .values import LARGEST_SEED, finite_number, whole_number

T = TypeVar("T")


def path(text: str) -> Path:
    """A path, with a leading ~ expanded."""
    return as_argument(lambda: user_path(text))


def integer(minimum: int, maximum: int = LARGEST_SEED) -> Callable[[str], int]:
    """An integer from `minimum` to `maximum`."""
    return _parser(int, "an integer", lambda value: whole_number(value, "the value", minimum, maximum))


def number(
    minimum: float, maximum: float = math.inf, above: float | None = None, below: float | None = None
) -> Callable[[str], float]:
    """A finite number from `minimum` to `maximum`, more than `above`, less than `below`."""
    return _parser(
        float, "a number", lambda value: finite_number(value, "the value", minimum, maximum, above, below)
    )


def _parser(kind: Callable[[str], T], expected: str, check: Callable[[T], T]) -> Callable[[str], T]:
    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not {expected}") from None
        return as_argument(lambda: check(value))

    return parse


seed = integer(0, LARGEST_SEED)
share = number(0, 1)


def as_argument(check: Callable[[], T]) -> T:
    """`check()` with its UserError as argparse's error; argparse replaces that of a ValueError."""
    try:
        return check()
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
