"""Loading and saving without the progress bars and remarks of transformers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

#: Fewer bytes are read or written in a moment, without a progress bar.
LARGE = 2_000_000_000
#: Messages to suppress, by logger. Saving imports DeepSpeed, if installed, by way of accelerate.
_REMARKS = {"transformers.modeling_utils": "LOAD REPORT", "DeepSpeed": "Setting accelerator to CPU"}
_lock = threading.Lock()
_silent: list[bool] = []  # one entry per active `quiet`; the first: whether bars were on before


@contextmanager
def quiet(size: int) -> Iterator[None]:
    """Suppress progress bars while fewer than `LARGE` bytes are read or written, and the table of mismatches.

    The errors of loading name the mismatches.
    """
    for name in _REMARKS:
        logging.getLogger(name).addFilter(_is_wanted)
    try:
        with _no_progress_bars() if size < LARGE else nullcontext():
            yield
    finally:
        for name in _REMARKS:
            logging.getLogger(name).removeFilter(_is_wanted)


def size_of(files: Iterable[Path]) -> int:
    """Bytes of the files, each counted once."""
    return sum(path.stat().st_size for path in set(files))


def size_of_model(model: Any) -> int:
    """Bytes of a model's parameters."""
    return sum(one.numel() * one.element_size() for one in model.parameters())


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    with _lock:
        _silent.append(transformers_logging.is_progress_bar_enabled())
        if _silent[-1]:
            transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        with _lock:
            was_on = _silent[0]
            _silent.pop()
            if not _silent and was_on:
                transformers_logging.enable_progress_bar()


def _is_wanted(record: logging.LogRecord) -> bool:
    return _REMARKS[record.name] not in record.getMessage()
