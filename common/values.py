"""Checks of single values, with the same messages for command lines, recipes and Python calls."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from .errors import UserError, shown

#: The greatest seed of both torch and numpy.
LARGEST_SEED = 2**63 - 1


def whole_number(value: Any, name: str, least: int = 0, most: int | None = None) -> int:
    """`value`, an integer (also of numpy or torch, not a boolean) from `least` to `most`, as an int.

    Errors:
        UserError for another type, and for one out of range.
    """
    value = scalar(value)
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or value < least or (most is not None and value > most):
        raise UserError(f"{name} is {shown(value)}; give an integer{_range(least, most)}")
    return int(value)


def finite_number(
    value: Any,
    name: str,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """`value`, a finite number (also of numpy or torch, not a boolean), as a float.

    above, below: strict bounds.

    Errors:
        UserError for another type, and for one out of range.
    """
    limits = ",".join(filter(None, (_range(least, most), _open_range(above, below))))
    value = scalar(value)
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    inside = math.isfinite(number) and least <= number <= most
    if not inside or (above is not None and number <= above) or (below is not None and number >= below):
        raise UserError(f"{name} is {shown(value)}; give a number{limits}")
    return number


def seed_number(value: Any, name: str = "seed") -> int:
    """`value` as a seed for torch's generators."""
    return whole_number(value, name, 0, LARGEST_SEED)


def flag(value: Any, name: str) -> bool:
    """`value`, which must be True or False, also of numpy or torch."""
    value = scalar(value)
    if not isinstance(value, bool):
        raise UserError(f"{name} is {shown(value)}; give True or False")
    return value


def one_of(value: Any, name: str, allowed: Iterable[Any]) -> Any:
    """`value`, which must be one of `allowed`."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise UserError(f"{name} is {shown(value)}; allowed: {', '.join(map(str, allowed))}")
    return value


def refuse_unknown(given: Iterable[str], allowed: Iterable[str], what: str) -> None:
    """Raise UserError for the first name of `given` that is not `allowed`, with the most similar one.

    what: the kind of name for the message, as "option".
    """
    names = sorted(allowed)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(names)}"
            raise UserError(f"unknown {what} {shown(name)}; {hint}")


def scalar(value: Any) -> Any:
    """The Python value of numpy's and torch's scalars; anything else unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _range(least: float, most: float | None) -> str:
    """The allowed range in words, after a space; empty without bounds."""
    bounded = most is not None and most != math.inf
    if least == -math.inf:
        return f" of {_digits(most)} or less" if bounded else ""
    return f" from {_digits(least)} to {_digits(most)}" if bounded else f" of {_digits(least)} or more"


def _digits(number: float | None) -> str:
    """A bound: an integer with all digits, a float in short form."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _open_range(above: float | None, below: float | None) -> str:
    """The same for strict bounds."""
    words = [f"above {above:g}"] if above is not None else []
    words += [f"below {below:g}"] if below is not None else []
    return f" {' and '.join(words)}" if words else ""
