"""Types of command-line arguments: argparse calls them with a text, and shows what they say is wrong."""

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
    """A whole number from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not an integer") from None
        return as_argument(lambda: whole_number(value, "the value", minimum, maximum))

    return parse


def number(
    minimum: float, maximum: float = math.inf, above: float | None = None, below: float | None = None
) -> Callable[[str], float]:
    """A finite number from `minimum` to `maximum`, more than `above`, less than `below`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None
        return as_argument(lambda: finite_number(value, "the value", minimum, maximum, above, below))

    return parse


seed = integer(0, LARGEST_SEED)
share = number(0, 1)


def as_argument(check: Callable[[], T]) -> T:
    """`check()`; argparse would take the words of a UserError, which is a ValueError, for its own."""
    try:
        return check()
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
