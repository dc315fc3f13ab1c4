"""Values in data from other sources: null counts as absent, and numbers are accepted as strings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Number
from typing import Any

from ...common.errors import shown
from ...common.json_files import JsonError, parse_json
from ..records import RecordError

_BYTE_ORDER_MARK = "\ufeff"


def first_given(entry: Mapping[str, Any], *names: str) -> Any:
    """The first of the fields `names` that is present and not null, or None."""
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def optional_text(value: Any, what: str) -> str | None:
    """A string without its byte order mark; None for null and NaN, which stands for null in tables.

    Numbers and booleans are converted by `str`. Raises RecordError for anything else.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value.removeprefix(_BYTE_ORDER_MARK)
    if isinstance(value, Number):  # a bool is one too
        return str(value)
    raise RecordError(f"its {what} is {shown(value)}, not a string")


def required_text(value: Any, what: str) -> str:
    """`optional_text`, stripped. Raises RecordError where it is missing or empty."""
    text = optional_text(value, what)
    if text is None:
        raise RecordError(f"it has no {what}")
    if not text.strip():
        raise RecordError(f"its {what} is empty")
    return text.strip()


def as_list(value: Any) -> list[Any]:
    """The items of a list, or a single value as a list, without null."""
    return [item for item in (value if isinstance(value, list | tuple) else [value]) if item is not None]


def json_value(text: str | bytes, what: str) -> Any:
    """The value of a JSON file of a sample. Raises RecordError, naming `what`, where it is not JSON."""
    try:
        return parse_json(text)
    except JsonError as error:
        raise RecordError(f"its {what} is not JSON ({error})") from None
