"""Standard streams, made safe to use when they are pipes, closed, or not UTF-8."""

import contextlib
import io
import os
import sys


def make_tolerant() -> None:
    """Keep unencodable characters and closed streams from ending a command.

    Unprintable characters become "?"; input bytes that are not UTF-8 become lone surrogates, which a reader
    can refuse line by line (`common.json_files.is_encodable`). A closed stream is replaced by the null
    device, so that no file opened later takes its number and gets our output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _null_device(number))
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "replace"),
        (sys.stderr, "backslashreplace"),
    ):
        # Test runners and notebooks replace the streams by other objects.
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):
                stream.reconfigure(errors=errors)


def flush_or_give_up() -> None:
    """Flush stdout, or discard what cannot be written, so that Python's flush at exit does not fail again."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        with contextlib.suppress(OSError, ValueError):
            os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _null_device(number: int) -> io.TextIOBase:
    """The null device under the number of a standard stream that is closed."""
    with contextlib.suppress(OSError):
        os.fstat(number)
        return open(os.devnull, "r" if number == 0 else "w")  # the number is in use for something else
    descriptor = os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)
    if descriptor != number:
        os.dup2(descriptor, number)
        os.close(descriptor)
    return open(number, "r" if number == 0 else "w", closefd=False)
