"""The files of one checkpoint: their description in ``state.json``, and checks against it.

A checkpoint may come from an untrusted source or a failing disk: its content is checked before use and never
executed.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from ...common.errors import UserError, first_line, shown
from ...common.files import atomic_file
from ...common.json_files import read_json_object, take, take_count
from ...common.paths import inside
from .saved_state import UnreadableFile, load_file

STATE = "state.json"
#: State of callbacks and objective, which the engine's files do not hold.
EXTRA = "beside_engine.pt"
BEST = "best.json"
RECIPE = "recipe.yaml"
_OLD_EXTRA = "objective.pt"  # its name in checkpoints written before the weight average was in it
STEP_NAME = re.compile(r"step-(\d{8})")
LAST_STEP = 99_999_999
_CHUNK = 1 << 24


@dataclass(frozen=True)
class SavedState:
    """The content of ``state.json``. Old checkpoints lack some fields, which then have their defaults.

    Args:
        global_batch: records per step.
        files: the size of every file, by its name in the folder.
        checksums: the CRC-32 of every file.
        data: a digest of the records by source.
    """

    step: int
    world_size: int
    global_batch: int | None = None
    zero_stage: int | None = None
    files: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, int] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> SavedState:
        """Read it from a checkpoint. UserError for a file that is missing, torn, or of another kind."""
        path = folder / STATE
        found = read_json_object(path)
        files, checksums, data = (
            take(found, name, dict, path, {}) for name in ("files", "checksums", "data")
        )
        for name in (*files, *checksums):
            inside(folder, name, f"{path}: the file")
        for name, value in data.items():
            if not isinstance(value, str):
                raise UserError(f"{path}: the data of {shown(name)} are {shown(value)}; expected a string")
        return cls(
            step=take_count(found, "step", path, most=LAST_STEP),
            world_size=take_count(found, "world_size", path, most=10**6),
            global_batch=_optional_count(found, "global_batch", path),
            zero_stage=_optional_count(found, "zero_stage", path, most=3),
            files={name: take_count(files, name, path) for name in files},
            checksums={name: take_count(checksums, name, path, most=2**32 - 1) for name in checksums},
            data=data,
        )

    def write(self, folder: Path) -> None:
        _write_json(folder / STATE, asdict(self))


@dataclass(frozen=True)
class Best:
    """The content of ``best.json``: the best checkpoint, and the loss on which data it had."""

    step: int
    loss: float
    data: Literal["training", "validation"]

    @classmethod
    def read(cls, folder: Path) -> Best | None:
        """Read it from the folder of all checkpoints; None if the file is missing or unusable."""
        path = folder / BEST
        try:
            found = read_json_object(path)
            step = take_count(found, "step", path, most=LAST_STEP)
            loss = float(take(found, "loss", (int, float), path))
        except (UserError, OverflowError):
            return None
        if found.get("data") not in ("training", "validation"):
            return None
        return cls(step, loss, cast(Literal["training", "validation"], found["data"]))

    def write(self, folder: Path) -> None:
        _write_json(folder / BEST, asdict(self))


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint's folder, or None. Compares sizes, not contents (see `damage`)."""
    try:
        state = SavedState.read(folder)
    except UserError as error:
        reason = str(error) if (folder / STATE).exists() else f"{STATE} is missing"
        return f"is incomplete: {reason}"
    name = STEP_NAME.fullmatch(folder.name)  # a copy may have any name
    if name is not None and int(name[1]) != state.step:
        return f"is damaged: {STATE} names step {state.step}"
    for file, size in state.files.items():
        try:
            found = (folder / file).stat().st_size
        except OSError:
            return f"is incomplete: {file} is missing"
        if found != size:
            return f"is incomplete: {file} has {found} of {size} bytes"
    return None


def damage(folder: Path, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with the contents of a checkpoint without a `fault`, or None.

    Every file must have its recorded checksum and be readable without executing anything. Only every
    `parts`-th file is checked, from number `part`.
    """
    try:
        state = SavedState.read(folder)
        stored = {str(path.relative_to(folder)) for path in folder.rglob("*.pt")}
        for name in sorted(stored | set(state.checksums))[part::parts]:
            path = inside(folder, name, f"the file in {folder}")
            if name in state.checksums and checksum(path) != state.checksums[name]:
                return f"is damaged: the content of {name} is not what was written (its checksum differs)"
            if path.suffix == ".pt":
                load_file(path)
    except UnreadableFile as error:
        return f"is damaged: {name} cannot be read: {error.reason}"
    except OSError as error:
        return f"cannot be read: {first_line(error)}"
    except UserError as error:
        return f"is damaged: {error}"
    return None


def read_extra(folder: Path) -> dict[str, Any]:
    """State of callbacks and objective in a checkpoint, by part: ``objective``, ``weight_average``, …"""
    for name in (EXTRA, _OLD_EXTRA):
        if (folder / name).is_file():
            extra = load_file(folder / name, mapped=False)
            if not isinstance(extra, dict):
                raise UserError(f"{folder / name} does not hold the state of a run")
            return extra
    return {}


def checksum(path: Path) -> int:
    """CRC-32 of a file, at more than 1 GB/s: detects errors of disks and copies. Not a signature."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def is_checkpoint(folder: Path) -> bool:
    """Whether a run wrote this folder, complete or not."""
    return (folder / STATE).is_file() or any(folder.glob("*_states.pt"))


def flush_to_disk(path: Path) -> None:
    """Fsync a file, or the entries of a folder, so that they survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing() -> Iterator[None]:
    """Turn errors of the disk or of torch's writer in the block into a UserError of one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        if "inline_container" in reason:  # torch's message for an incomplete write
            reason = f"a file could not be written in full: {reason}"
        raise UserError(reason) from error


def _optional_count(found: Mapping[str, Any], name: str, where: Path, most: int = 2**53) -> int | None:
    return None if found.get(name) is None else take_count(found, name, where, most=most)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
        flush_to_disk(temporary)
