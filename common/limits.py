"""Settings as dataclasses whose fields state what they may be: a range, a choice (`Literal`), or a flag.

    @dataclass(frozen=True)
    class OptimizerConfig:
        lr: float = limited(1e-3, least=0.0, most=10.0)
        betas: tuple[float, float] = limited((0.9, 0.95), least=0.0, below=1.0)

        def __post_init__(self) -> None:
            validate(self)

`problems(OptimizerConfig(lr=-1.0), "optimizer")` has one line, "optimizer.lr is -1.0; give a number from 0 to
10"; `validate` raises the first one, and `settings_from` makes such an object of a mapping.
"""

from __future__ import annotations

import dataclasses
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
    """What a number may be: from `least` to `most`, and strictly more than `above` and less than `below`."""

    least: float = -math.inf
    most: float = math.inf
    above: float | None = None
    below: float | None = None

    def check(self, value: Any, name: str, whole: bool) -> None:
        """Raise UserError unless `value` is a number in this range; a whole one, if `whole`."""
        if whole:
            least = 0 if self.least == -math.inf else int(self.least)
            whole_number(value, name, least, None if self.most == math.inf else int(self.most))
            return
        finite_number(value, name, self.least, self.most, self.above, self.below)


def limited(
    default: Any = MISSING,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field of numbers in a range: one, an optional one, or a tuple of them."""
    metadata = in_range(least=least, most=most, above=above, below=below)
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


def in_range(
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float | None = None,
    below: float | None = None,
) -> dict[str, Limits]:
    """The metadata of such a field, for one with a default factory (a list or a dictionary of numbers)."""
    return {_LIMITS: Limits(least, most, above, below)}


def problems(section: Any, prefix: str = "") -> list[str]:
    """What is wrong with the values of a dataclass and of all dataclasses in it, one line each.

    Every number is checked by the range of its field (one without a range must only be finite), a field of
    type bool for being a flag, and one of type `Literal` for being one of its values.
    """
    found = []
    for check in _checks(section, prefix):
        try:
            check()
        except UserError as error:
            found.append(str(error))
    return found


def validate(section: Any) -> None:
    """Raise UserError for the first of a dataclass's `problems`: what its `__post_init__` calls."""
    for problem in problems(section):
        raise UserError(problem)


def settings_from(kind: type[_Settings], given: Any, name: str) -> _Settings:
    """`kind` of a mapping of its fields; an object of `kind` is returned as it is, None means the defaults.

    Raises:
        UserError: an unknown or a missing field, or what `kind` refuses; the message begins with `name`.
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


def without_limits(section: type, prefix: str = "") -> list[str]:
    """The numeric fields of a dataclass, and of all dataclasses in it, that have no range."""
    found = []
    hints = typing.get_type_hints(section)
    for one in fields(section):
        name = f"{prefix}{one.name}"
        if number_kind(hints[one.name]) is not None and _LIMITS not in one.metadata:
            found.append(name)
        for inner in _classes(hints[one.name]):
            found += without_limits(inner, f"{name}.")
    return found


def number_kind(hint: Any) -> type | None:
    """int or float for a hint of numbers of that type, also optional ones or several, else None."""
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
    hints = typing.get_type_hints(type(section))
    for one in fields(section):
        value, name = getattr(section, one.name), f"{prefix}.{one.name}".lstrip(".")
        for inner_name, inner in _inner_sections(value, name):
            yield from numbers(inner, inner_name)
        kind = number_kind(hints[one.name])
        if kind is None or (value is None and type(None) in typing.get_args(hints[one.name])):
            continue
        limits = one.metadata.get(_LIMITS, Limits())
        if kind in (hints[one.name], *_options(hints[one.name])):  # one number, where a list is none
            yield name, limits, kind, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{key}", limits, kind, item) for key, item in value.items())
        elif isinstance(value, list | tuple):
            yield from ((name, limits, kind, item) for item in value)
        else:
            yield name, limits, kind, value


def _checks(section: Any, prefix: str) -> Iterator[Callable[[], object]]:
    for name, limits, kind, value in numbers(section, prefix):
        yield partial(limits.check, value, name, whole=kind is int)
    yield from _choices_and_flags(section, prefix)


def _choices_and_flags(section: Any, prefix: str) -> Iterator[Callable[[], object]]:
    hints = typing.get_type_hints(type(section))
    for one in fields(section):
        value, name = getattr(section, one.name), f"{prefix}.{one.name}".lstrip(".")
        for inner_name, inner in _inner_sections(value, name):
            yield from _choices_and_flags(inner, inner_name)
        if hints[one.name] is bool:
            yield partial(flag, value, name)
        elif typing.get_origin(hints[one.name]) is Literal:
            yield partial(one_of, value, name, typing.get_args(hints[one.name]))


def _options(hint: Any) -> tuple[Any, ...]:
    """The types of a union."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else ()


def _inner_sections(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        yield name, value
    elif isinstance(value, Mapping):
        yield from ((f"{name}.{key}", item) for key, item in value.items() if is_dataclass(item))


def _classes(hint: Any) -> Iterator[type]:
    """The dataclasses that a type hint names."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        yield hint
    for argument in typing.get_args(hint):
        yield from _classes(argument)
