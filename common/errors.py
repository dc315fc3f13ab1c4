"""The exception type for mistakes that the user can correct, with messages of one short line."""

from __future__ import annotations

LONGEST_MESSAGE = 300


class UserError(ValueError):
    """A mistake in a path, a file, a setting or a size that the user gave.

    The message names what was given, what is allowed and how to fix it, in one line of at most 300 printable
    characters. Command line tools print it without a traceback and exit with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ImageError(UserError):
    """An image that cannot be used; the message names the image and the reason."""


def one_line(text: object, longest: int = LONGEST_MESSAGE) -> str:
    """`text` on one line of at most `longest` characters; the middle of a longer one is left out.

    White space becomes single spaces; control characters and lone surrogates are escaped.
    """
    given = str(text)
    if len(given) > 8 * longest:  # may quote a whole file: cut it before the slow part
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
