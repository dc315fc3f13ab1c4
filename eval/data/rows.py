"""Rows of official files: every mistake in one is a UserError that names the file and the row."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ...common.errors import UserError, first_line, shown

ImageSource = Path | Image.Image
T = TypeVar("T")


class Row(dict[str, Any]):
    """The fields of one question; `row[name]` raises UserError for one that is missing or null.

    Args:
        values: the fields by name; UserError for anything that is not an object.
        where: names the row in messages: "FILE, line 3".
        key: id of the row in its file, else its number from 0.
        images: images of the question, where the file holds them.
    """

    def __init__(self, values: Any, where: str, key: str = "", images: tuple[ImageSource, ...] = ()) -> None:
        if not isinstance(values, dict):
            raise UserError(f"{where} holds {shown(values)}; expected an object with named fields")
        super().__init__(values)
        self.where, self.key, self.images = where, key, images

    def __getitem__(self, name: str) -> Any:
        if (value := self.get(name)) is None:
            raise UserError(f"{self.where} has no field {name!r}; it has {shown(list(self), 120)}")
        return value


@contextmanager
def values_of(where: str) -> Iterator[None]:
    """Turn any error caused by a value of the wrong type into a UserError that begins with `where`."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: a value is of the wrong type ({reason})") from error


def parse_rows(rows: Iterable[Row], parse: Callable[[Row], T]) -> list[T]:
    """`parse` of every row. UserError that names the file and the row whose values it cannot take."""
    parsed = []
    for row in rows:
        with values_of(row.where):
            parsed.append(parse(row))
    return parsed
