"""Strict reading of untrusted JSON: one error type, bounded depth and size, mistakes located by line.

The values returned can be written again as valid JSON in UTF-8: no NaN, no lone surrogates.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, AnyStr

from .errors import UserError, first_line, shown
from .paths import read_bounded

DEEPEST = 64
#: Settings and manifests are smaller; lists of records are read by other functions.
LARGEST_FILE = 256_000_000
#: Limit of a line of JSON lines or of a table; some hold images.
LONGEST_LINE = 64_000_000


class JsonError(ValueError):
    """A string that is not usable JSON; the message is one line."""


def parse_json(text: str | bytes, deepest: int = DEEPEST) -> Any:
    """The value of a JSON text; bytes are UTF-8, with or without a byte order mark.

    NaN and infinities, which are not JSON, become None.

    Errors:
        JsonError for invalid JSON, nesting deeper than `deepest`, numbers of thousands of digits, and half of
        a surrogate pair.
    """
    try:
        if isinstance(text, bytes | bytearray):
            text = text.decode("utf-8-sig")
        value = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except RecursionError:
        raise JsonError(f"nested deeper than {deepest} levels") from None
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise JsonError(first_line(error)) from None
    _check_value(value, text, deepest)
    return value


def json_list(text: str, deepest: int = DEEPEST) -> Iterator[Any]:
    """The entries of a JSON list, one after the other; a JsonError in place of one that `parse_json` refuses.

    Errors:
        JsonError, with the line, where the text is not a list or its syntax is broken.
    """
    decoder = json.JSONDecoder(parse_constant=lambda _: None, parse_float=_finite)
    position = _skip(text, 0, "[")
    more = _next_character(text, position) != "]"
    while more:
        entry, position = _list_entry(decoder, text, _past_space(text, position), deepest)
        yield entry
        more = _next_character(text, position) != "]"
        if more:
            position = _skip(text, position, ",")
    position = _skip(text, position, "]")
    if text[position:].strip():
        raise JsonError(f"text after the end of the list, in line {_line(text, position)}")


def _list_entry(decoder: json.JSONDecoder, text: str, start: int, deepest: int) -> tuple[Any, int]:
    """(entry, end): the entry of a list that begins at `start`, or a JsonError in its place."""
    try:
        value, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} in line {error.lineno}") from None
    except RecursionError:
        return JsonError(f"nested deeper than {deepest} levels"), _end_of_entry(text, start)
    except ValueError as error:  # a number of thousands of digits
        return JsonError(first_line(error)), _end_of_entry(text, start)
    try:
        _check_value(value, text[start:end], deepest)
    except JsonError as error:
        return error, end
    return value, end


_STRUCTURE = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def _end_of_entry(text: str, start: int) -> int:
    """The end of the list entry that begins at `start`, found by its brackets alone."""
    depth = 0
    for found in _STRUCTURE.finditer(text, start):
        mark = found[0]
        if depth == 0 and mark in (",", "]"):
            return found.start()
        depth += (mark in ("[", "{")) - (mark in ("]", "}"))
    raise JsonError(f"the entry that begins in line {_line(text, start)} has no end")


_SPACE = re.compile(r"[ \t\r\n]*")


def _past_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return position if found is None else found.end()


def _next_character(text: str, position: int) -> str:
    return text[(start := _past_space(text, position)) : start + 1]


def _skip(text: str, position: int, character: str) -> int:
    """The position after `character`, which must come next."""
    position = _past_space(text, position)
    if text[position : position + 1] != character:
        raise JsonError(f"{character!r} is missing in line {_line(text, position)}")
    return position + 1


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _check_value(value: Any, text: str, deepest: int) -> None:
    """Raise JsonError where `value`, parsed from `text`, cannot be written again."""
    if text.count("[") + text.count("{") > deepest and nesting(value) > deepest:
        raise JsonError(f"nested deeper than {deepest} levels")
    suspicious = "\\ud" in text or "\\uD" in text or not is_encodable(text)
    if suspicious and not is_encodable(json.dumps(value, ensure_ascii=False)):
        raise JsonError("half of a surrogate pair, which no string can hold, or bytes that are not UTF-8")


def nesting(value: Any) -> int:
    """The depth of nested lists and objects; 0 for a string or a number."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode `text`: it has no lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path, largest: int = LARGEST_FILE) -> str:
    """A text file in UTF-8, without its byte order mark.

    Errors:
        UserError for one that cannot be read, is not a regular file, or has more than `largest` bytes.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise UserError(f"{path} is not a file")
        if about.st_size > largest:
            raise UserError(f"{path} has {about.st_size} bytes; at most {largest} are read")
        return read_bounded(path, largest).decode("utf-8-sig")
    except UserError:
        raise
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file. UserError for invalid JSON."""
    try:
        return parse_json(read_text(path))
    except JsonError as error:
        raise UserError(f"{path} is not JSON ({error})") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. UserError for another value."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {shown(value)}; expected a JSON object")
    return value


def read_json_lines(path: Path, fields: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects of a file, in order. UserError for a line without an object or one of its `fields`."""
    rows = []
    for number, line in enumerate_lines(read_text(path)):
        try:
            row = parse_json(line)
        except JsonError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error})") from None
        lost = [name for name in fields if not isinstance(row, dict) or name not in row]
        if lost or not isinstance(row, dict):
            raise UserError(f"{path}, line {number} has no field {', '.join(lost) or '(not an object)'}")
        rows.append(row)
    return rows


def enumerate_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of the lines that are not blank; only a line feed ends a line.

    Unlike splitlines, which also splits at separators that strings in JSON may hold, such as U+2028.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def bounded_lines(file: IO[AnyStr], longest: int = LONGEST_LINE) -> Iterator[AnyStr | None]:
    """The lines of an open file; None in place of one of more than `longest` bytes or characters."""
    while line := file.readline(longest + 1):
        if len(line) <= longest:
            yield line
            continue
        yield None
        while line and line[-1:] not in ("\n", "\r", b"\n"):
            line = file.readline(longest + 1)


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if abs(number) != float("inf") else None


def take(
    found: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: object, default: Any = ...
) -> Any:
    """`found[name]`, which must be of `kind` (a bool is not a number); `default` if it is null or absent.

    Errors:
        UserError that names `where` (a file), the field and its value.
    """
    value = found.get(name)
    if value is None and default is not ...:
        return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(one.__name__ for one in kinds)
        raise UserError(f"{where}: {name} is {shown(value)}; expected {names}")
    return value


def take_count(
    found: Mapping[str, Any], name: str, where: object, default: Any = ..., most: int = 2**53
) -> Any:
    """`found[name]`, an integer from 0 to `most`; `default` and errors as in `take`."""
    value = take(found, name, int, where, default)
    if found.get(name) is None:
        return value
    if not 0 <= value <= most:
        raise UserError(f"{where}: {name} is {shown(value)}; expected a number from 0 to {most}")
    return int(value)


def take_list(
    found: Mapping[str, Any], name: str, check: Callable[[Any], bool], expected: str, where: object
) -> list[Any]:
    """`found[name]`, a list whose items all pass `check`; `expected` describes them."""
    values = take(found, name, list, where)
    wrong = next((value for value in values if not check(value)), None)
    if wrong is not None or not all(map(check, values)):
        raise UserError(f"{where}: {name} holds {shown(wrong)}; expected {expected}")
    return list(values)
