"""What is changed inside DeepSpeed: it executes nothing that it reads and compiles nothing without need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint_files import attempt
from .saved_state import load_file


def read_strictly(engine: Any) -> None:
    """Have an engine read all files of checkpoints as `load_file` does; its own way is to unpickle them.

    `load_checkpoint` reads by the engine's checkpoint engine alone as long as no universal checkpoint is
    asked for, which a run here never does.
    """
    engine.checkpoint_engine.load = lambda path, map_location=None: load_file(Path(path), mapped=False)


@dataclass
class Record:
    """Files that DeepSpeed's writer was asked for, and what went wrong at it."""

    files: list[Path] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def recorded_writing(writer: Any) -> Iterator[Record]:
    """DeepSpeed's writer, with its files noted, and errors collected instead of raised.

    A process that left in the middle of saving would have the others wait for it for ever.
    """
    record = Record()
    save = writer.save

    def save_and_note(state_dict: Any, path: str) -> None:
        error = attempt(lambda: save(state_dict, path))
        if error is not None:
            record.errors.append(error)
        record.files.append(Path(path))

    writer.save = save_and_note
    try:
        yield record
    finally:
        del writer.save


def set_clipping(engine: Any, largest_norm: float) -> None:
    """Clip gradients at this norm; ZeRO takes that of a checkpoint when it loads one."""
    if engine.zero_optimization():
        engine.optimizer.clip_grad = largest_norm


def without_shared_memory_operator() -> None:
    """Keep DeepSpeed from compiling its shared-memory collective, which tensor-parallel inference alone uses.

    On CPUs it would compile for a minute or more, without a word, at the first start of any run. It asks a
    table of what can be compiled here, which is made at the first question, by a trial that writes a linker's
    errors to the terminal; nothing else asks it.
    """
    import deepspeed.ops

    vars(deepspeed.ops)["__compatible_ops__"] = {}
