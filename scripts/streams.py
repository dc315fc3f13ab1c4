"""Standard input and output as a terminal, a pipe or a closed descriptor gives them, made safe to use."""

import contextlib
import io
import os
import sys


def make_tolerant() -> None:
    """Let no character and no missing stream end a command.

    What the terminal cannot show is printed as "?"; bytes of the input that are not text become lone
    surrogates, which a reader can refuse line by line (`common.json_files.is_encodable`). A closed stream is
    replaced by the null device, so that no file opened later takes its number and gets our output.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, _null_device(number))
    for stream, errors in (
        (sys.stdin, "surrogateescape"),
        (sys.stdout, "replace"),
        (sys.stderr, "backslashreplace"),
    ):
        # Test runners and notebooks put in objects that cannot be set up, nor need it.
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):
                stream.reconfigure(errors=errors)


def flush_or_give_up() -> None:
    """Print what is still waiting; where that fails, for a full disk or a reader that is gone, drop it.

    Without this Python would complain again when it flushes at exit.
    """
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
