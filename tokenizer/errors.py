"""The one exception type for mistakes that the user can correct."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave: a path, a file, a setting or a size.

    The message is one line that says what was given, what is allowed and how to fix it. Command line tools
    print it without a traceback and exit with status 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message, cut to 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
