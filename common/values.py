"""Checks of single values, in one wording for command lines, recipes and Python calls."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from .errors import UserError, shown

#: Seeds are what torch and numpy both take.
LARGEST_SEED = 2**63 - 1


def whole_number(value: Any, name: str, least: int = 0, most: int | None = None) -> int:
    """`value` as an int; numpy's integers are taken, booleans, floats and texts are not.

    Errors:
        UserError for another type, and for one outside `least` to `most`.
    """
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{name} is {shown(value)}; give an integer{_range(least, most)}")
    number = int(value)
    if number < least or (most is not None and number > most):
        raise UserError(f"{name} is {shown(number)}; give an integer{_range(least, most)}")
    return number


def finite_number(
    value: Any,
    name: str,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """`value` as a float; NaN and infinities, booleans and texts are not taken.

    above, below: the number must be greater, or less, than this.

    Errors:
        UserError for another type, and for one out of range.
    """
    limits = ",".join(filter(None, (_range(least, most), _open_range(above, below))))
    value = scalar(value)
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{name} is {shown(value)}; give a number{limits}")
    outside = not least <= number <= most or (above is not None and number <= above)
    if outside or (below is not None and number >= below):
        raise UserError(f"{name} is {shown(number)}; give a number{limits}")
    return number


def seed_number(value: Any, name: str = "seed") -> int:
    """`value` as a seed of torch's generators."""
    return whole_number(value, name, 0, LARGEST_SEED)


def flag(value: Any, name: str) -> bool:
    """`value`, which must be True or False; numpy's and torch's are taken."""
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
    """Raise UserError for the first name of `given` that is not `allowed`, with the one that was meant.

    what: names one of them in the message, as "option".
    """
    names = sorted(allowed)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(names)}"
            raise UserError(f"unknown {what} {shown(name)}; {hint}")


def scalar(value: Any) -> Any:
    """The Python number of numpy's and torch's scalars; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _range(least: float, most: float | None) -> str:
    """The allowed range in words, with a space in front; empty where everything is allowed."""
    bounded = most is not None and most != math.inf
    if least == -math.inf:
        return f" of {_digits(most)} or less" if bounded else ""
    return f" from {_digits(least)} to {_digits(most)}" if bounded else f" of {_digits(least)} or more"


def _digits(number: float | None) -> str:
    """A bound as a person writes it: whole numbers with all their digits."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def _open_range(above: float | None, below: float | None) -> str:
    """The same for bounds that are themselves not allowed."""
    words = [f"above {above:g}"] if above is not None else []
    words += [f"below {below:g}"] if below is not None else []
    return f" {' and '.join(words)}" if words else ""
