"""The one exception type for mistakes that the user can correct, and messages that stay one short line."""

from __future__ import annotations

LONGEST_MESSAGE = 300


class UserError(ValueError):
    """A mistake in what the user gave: a path, a file, a setting or a size.

    The message says what was given, what is allowed and how to fix it. It is made one line of at most 300
    printable characters, whatever values it quotes. Command line tools print it without a traceback and exit
    with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ImageError(UserError):
    """An image that cannot be used, whatever library says so; the message names it and the reason."""


def one_line(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """`text` on one line of at most `longest` characters, the middle left out where it is longer.

    White space becomes single spaces; characters that a terminal would obey or that UTF-8 cannot encode
    (control characters, lone surrogates) are escaped.
    """
    given = str(text)
    if len(given) > 8 * longest:  # a message that quotes a whole file is cut before it is worked through
        given = f"{given[: 4 * longest]} … {given[-4 * longest :]}"
    line = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in " ".join(given.split())
    )
    if len(line) <= longest:
        return line
    end = (longest - 3) // 3
    return f"{line[: longest - 3 - end]} … {line[-end:]}"


def shown(value: object, longest: int = 80) -> str:
    """`repr(value)` for a message, cut to `longest` characters."""
    return one_line(repr(value), longest)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none; at most 300 characters."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__
