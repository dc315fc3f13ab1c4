"""Errors that the user can correct, and the line that says how."""

import argparse
import errno
import re

from ..common.errors import UserError, first_line, shown
from ..common.packages import OPTIONAL, missing_package

_BYTES = re.compile(r"tried to allocate (\d+) bytes|Unable to allocate ([\d.]+ [KMGTPE]iB)", re.IGNORECASE)
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")
#: Limits of the machine, independent of the file, and what to do.
_LIMITS = {
    errno.ENOSPC: ("the disk is full", "make room and start again"),
    errno.EDQUOT: ("the disk quota is used up", "make room and start again"),
    errno.EROFS: ("the disk is read-only", "give a folder on another one"),
    errno.EMFILE: ("too many files are open", "allow more with ulimit -n"),
    errno.ENOMEM: ("the memory is full", "end other programs, or give smaller sizes"),
}


class CommandLineError(Exception):
    """The command line itself is wrong: an unknown option, a missing value."""


def users_mistake(error: BaseException) -> str | None:
    """One line on what the user should change, or None for an error of the program."""
    if isinstance(error, CommandLineError | UserError | argparse.ArgumentTypeError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        return missing_package(package) if package in OPTIONAL else None
    if isinstance(error, OSError):
        return _of_the_system(error)
    if isinstance(error, UnicodeError):
        given = error.object if isinstance(error, UnicodeEncodeError | UnicodeDecodeError) else str(error)
        return f"{shown(given)} is not UTF-8 text ({first_line(error)})"
    if "operator torchvision::nms does not exist" in str(error):
        return (
            "torch and torchvision are builds that do not fit together (one for CPU, one for CUDA):"
            " reinstall both from one source, or remove torchvision, which the core does not need"
        )
    return _of_memory(error)


def _of_the_system(error: OSError) -> str | None:
    """A file that cannot be used, or a limit of the machine; None for other errors."""
    if error.errno in _LIMITS:
        what, advice = _LIMITS[error.errno]
        return f"{what}{'' if error.filename is None else f': {error.filename}'}; {advice}"
    if error.filename is None or error.strerror is None:
        return None
    return f"{shown(error.filename)} cannot be used: {error.strerror}"


def _of_memory(error: BaseException) -> str | None:
    """Not enough memory for the given size; torch raises RuntimeError, numpy MemoryError."""
    text = str(error)
    if not isinstance(error, MemoryError) and not any(words in text for words in _OUT_OF_MEMORY):
        return None
    found = _BYTES.search(text)
    size = "more memory than there is"
    if found is not None:
        size = found[2] or f"{int(found[1]) / 1e9:.1f} GB more memory than there is"
    return f"this needs {size}; give a smaller size, number of images or batch, or a smaller model"
