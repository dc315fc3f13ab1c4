"""Loading and saving without transformers' remarks that say nothing to a user."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from transformers.utils import logging as transformers_logging

#: Files of fewer bytes are read or written in a moment, and need no progress bar.
LARGE = 2_000_000_000
_lock = threading.Lock()
_silent: list[bool] = []  # one entry for each `quiet` at work; the first has whether bars were on before


@contextmanager
def quiet(size: int) -> Iterator[None]:
    """No progress bars while `size` bytes are read or written, unless they are many, and no table of misfits.

    What a table would say, the error says in one line.
    """
    misfits = logging.getLogger("transformers.modeling_utils")
    misfits.addFilter(_is_no_report)
    if size < LARGE:
        _switch_off()
    try:
        yield
    finally:
        if size < LARGE:
            _switch_back()
        misfits.removeFilter(_is_no_report)


def size_of(files: Iterable[Path]) -> int:
    """Bytes of the files, each counted once."""
    return sum(path.stat().st_size for path in set(files))


def size_of_model(model: nn.Module) -> int:
    """Bytes of a model's parameters."""
    return sum(one.numel() * one.element_size() for one in model.parameters())


def _switch_off() -> None:
    with _lock:
        _silent.append(transformers_logging.is_progress_bar_enabled())
        if _silent[-1]:
            transformers_logging.disable_progress_bar()


def _switch_back() -> None:
    with _lock:
        was_on = _silent[0]
        _silent.pop()
        if not _silent and was_on:
            transformers_logging.enable_progress_bar()


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
