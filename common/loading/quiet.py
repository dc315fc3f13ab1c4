"""Loading and saving without transformers' remarks that say nothing to a user."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

#: Files of fewer bytes are read or written in a moment, and need no progress bar.
LARGE = 2_000_000_000
#: What is left out, by logger. Saving imports DeepSpeed, where it is installed, by way of accelerate.
_REMARKS = {"transformers.modeling_utils": "LOAD REPORT", "DeepSpeed": "Setting accelerator to CPU"}
_lock = threading.Lock()
_silent: list[bool] = []  # one entry for each `quiet` at work; the first has whether bars were on before


@contextmanager
def quiet(size: int) -> Iterator[None]:
    """No progress bars while `size` bytes are read or written, unless they are many, and no table of misfits.

    What a table would say, the error says in one line.
    """
    for name in _REMARKS:
        logging.getLogger(name).addFilter(_says_something)
    if size < LARGE:
        _switch_off()
    try:
        yield
    finally:
        if size < LARGE:
            _switch_back()
        for name in _REMARKS:
            logging.getLogger(name).removeFilter(_says_something)


def size_of(files: Iterable[Path]) -> int:
    """Bytes of the files, each counted once."""
    return sum(path.stat().st_size for path in set(files))


def size_of_model(model: Any) -> int:
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


def _says_something(record: logging.LogRecord) -> bool:
    return _REMARKS[record.name] not in record.getMessage()
