"""Settings as dataclasses whose fields state their allowed values: a range, a choice (`Literal`), or a flag.

    @dataclass(frozen=True)
    class OptimizerConfig:
        lr: float = limited(1e-3, least=0.0, most=10.0)
        betas: tuple[float, float] = limited((0.9, 0.95), least=0.0, below=1.0)

        def __post_init__(self) -> None:
            validate(self)

`problems(OptimizerConfig(lr=-1.0), "optimizer")` has one line, "optimizer.lr is -1.0; give a number from 0 to
10"; `validate` raises the first one, and `settings_from` makes such an object from a mapping.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from .errors import UserError, shown
from .values import finite_number, flag, one_of, refuse_unknown, whole_number

_LIMITS = "limits"
_Settings = TypeVar("_Settings")


@dataclass(frozen=True)
class Limits:
    """The range of a number: from `least` to `most`, strictly more than `above` and less than `below`."""

    least: float = -math.inf
    most: float = math.inf
    above: float | None = None
    below: float | None = None

    def check(self, value: Any, name: str, kind: type) -> None:
        """Raise UserError unless `value` is a number of `kind` (int or float) in this range."""
        if kind is int:
            least = 0 if self.least == -math.inf else int(self.least)
            whole_number(value, name, least, None if self.most == math.inf else int(self.most))
        else:
            finite_number(value, name, self.least, self.most, self.above, self.below)


def limited(default: Any = MISSING, **limits: float) -> Any:
    """A dataclass field for a number in a range (fields of `Limits`), an optional one, or a tuple of them."""
    return field(default=default, metadata=in_range(**limits))


def in_range(**limits: float) -> dict[str, Limits]:
    """The metadata of `limited`, for a field with a default factory (a list or a dictionary of numbers)."""
    return {_LIMITS: Limits(**limits)}


def problems(section: Any, prefix: str = "") -> list[str]:
    """The mistakes in the values of a dataclass and of all dataclasses in it, one line each.

    Numbers must be in the range of their field, or finite if it has none; a field of type bool must be a
    flag, and one of type `Literal` one of its values.
    """
    found = []
    for check in _checks(section, prefix):
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return found


def validate(section: Any) -> None:
    """Raise UserError for the first of a dataclass's `problems`; for its `__post_init__`."""
    for problem in problems(section):
        raise UserError(problem)


def settings_from(kind: type[_Settings], given: Any, name: str) -> _Settings:
    """A `kind` from a mapping of its fields; an object of `kind` is returned unchanged, None is all defaults.

    Raises:
        UserError: an unknown or missing field, or what `kind` refuses; the message begins with `name`.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping | None):
        raise UserError(f"{name} is {shown(given)}; give its settings by name")
    own = fields(kind)  # type: ignore[arg-type]
    refuse_unknown(given or (), [one.name for one in own], f"{name} setting")
    required = [one.name for one in own if one.default is MISSING and one.default_factory is MISSING]
    missing = [field for field in required if field not in (given or ())]
    if missing:
        raise UserError(f"{name} lacks {', '.join(missing)}")
    try:
        return kind(**(given or {}))
    except UserError as error:
        raise UserError(f"{name}.{error}") from None


def number_kind(hint: Any) -> type | None:
    """int or float for the hint of such a number, also optional or several of them, else None."""
    if hint in (int, float):
        return typing.cast("type", hint)
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (dict, Mapping):
        arguments = arguments[1:]
    elif typing.get_origin(hint) not in (tuple, list, typing.Union, types.UnionType):
        return None
    kinds = {number_kind(argument) for argument in arguments} - {None}
    return kinds.pop() if len(kinds) == 1 else None


def numbers(section: Any, prefix: str = "") -> Iterator[tuple[str, Limits, type, Any]]:
    """(name, range, int or float, value) of every number in a dataclass and in all dataclasses in it."""
    for name, hint, limits, value in _values(section, prefix):
        kind = number_kind(hint)
        if kind is None or (value is None and type(None) in typing.get_args(hint)):
            continue
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        single = hint is kind or (is_union and kind in typing.get_args(hint))  # a list would be a mistake
        if single or not isinstance(value, Mapping | list | tuple):
            yield name, limits, kind, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{key}", limits, kind, item) for key, item in value.items())
        else:
            yield from ((name, limits, kind, item) for item in value)


def _checks(section: Any, prefix: str) -> Iterator[Callable[[], object]]:
    for name, limits, kind, value in numbers(section, prefix):
        yield partial(limits.check, value, name, kind)
    for name, hint, _, value in _values(section, prefix):
        if hint is bool:
            yield partial(flag, value, name)
        elif typing.get_origin(hint) is Literal:
            yield partial(one_of, value, name, typing.get_args(hint))


def _values(section: Any, prefix: str) -> Iterator[tuple[str, Any, Limits, Any]]:
    """(name, type hint, range, value) of every field of a dataclass and of all dataclasses in it."""
    hints = typing.get_type_hints(type(section))
    for one in fields(section):
        value, name = getattr(section, one.name), f"{prefix}.{one.name}".lstrip(".")
        is_mapping = isinstance(value, Mapping)
        inner = {f"{name}.{key}": item for key, item in value.items()} if is_mapping else {name: value}
        for inner_name, item in inner.items():
            if is_dataclass(item):
                yield from _values(item, inner_name)
        yield name, hints[one.name], one.metadata.get(_LIMITS, Limits()), value
