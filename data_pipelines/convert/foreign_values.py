"""Values of other people's data: what counts as a text, and that null is the same as absent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Number
from typing import Any

from ...common.errors import shown
from ..records import RecordError

_BYTE_ORDER_MARK = "\ufeff"


def first_given(entry: Mapping[str, Any], *names: str) -> Any:
    """The first field of `names` that is there and not null; None without one."""
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def optional_text(value: Any, what: str) -> str | None:
    """A text without its byte order mark; None for null and NaN, which tables have for null.

    Numbers and truth values are what `str` makes of them. Raises RecordError for anything else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value.removeprefix(_BYTE_ORDER_MARK)
    if isinstance(value, Number):  # a bool is one too
        return str(value)
    raise RecordError(f"its {what} is not a text but {shown(value)}")


def needed_text(value: Any, what: str) -> str:
    """`optional_text` without white space around it. Raises RecordError where none is there."""
    text = optional_text(value, what)
    if text is None:
        raise RecordError(f"it has no {what}")
    if not text.strip():
        raise RecordError(f"its {what} is empty")
    return text.strip()


def as_list(value: Any) -> list[Any]:
    """A value, or the values of a list, that are not null."""
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if item is not None]
