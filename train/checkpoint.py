"""Checkpoints of a run: written beside, made durable, renamed when whole, pruned, found again.

Only weights, optimizer, scheduler and the step number are stored, and what is trained beside the engine.
The data position and all random numbers follow from the step number, so a resumed run is the uninterrupted
run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..common.errors import UserError, first_line
from ..common.files import atomic_file
from .distributed import World

STATE = "state.json"
BESIDE = "beside_engine.pt"
BEST = "best.json"
RECIPE = "recipe.yaml"
_OLD_BESIDE = "objective.pt"  # its name in checkpoints written before the weight average was in it
_NAME = re.compile(r"step-(\d{8})$")
_PARTIAL = ".partial"


@dataclass(frozen=True)
class JudgedBy:
    """The loss by which a checkpoint may be the best so far: lower is better."""

    loss: float
    data: Literal["training", "validation"]


class Checkpoints:
    """The folder ``checkpoints/`` of a run: one folder for each kept step, ``best.json`` names the best.

    A folder with a checkpoint's name is whole: it is written under another name, brought to the disk
    (fsync) and renamed. `fault` recognises one that was damaged later.

    Args:
        keep: how many of the newest checkpoints stay.
        keep_best: whether the one with the lowest loss stays besides.
    """

    def __init__(self, folder: Path, world: World, keep: int, keep_best: bool = True) -> None:
        self.folder, self.world, self.keep, self.keep_best = folder, world, max(1, keep), keep_best

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Step numbers of the whole checkpoints, oldest first."""
        return [step for step in self._all_steps() if fault(self.path(step)) is None]

    def best(self) -> dict[str, Any] | None:
        """``step``, ``loss`` and ``data`` (what the loss was of) of the best checkpoint, if it is there."""
        try:
            best = json.loads((self.folder / BEST).read_text())
        except (OSError, ValueError):
            return None
        return best if fault(self.path(best["step"])) is None else None

    def save(
        self,
        engine: Any,
        step: int,
        beside: dict[str, Any] | None = None,
        judged: JudgedBy | None = None,
    ) -> None:
        """Write the checkpoint of ``step``, with what is trained beside the engine; every rank calls this.

        judged: the loss with which it competes for the best; None leaves it out of the competition.

        Errors:
            UserError on every rank when any of them could not write (a full disk). The checkpoints before
            are untouched, the torn one is removed.
        """
        final = self.path(step)
        partial = final.with_name(final.name + _PARTIAL)
        if final.exists() and fault(final) is None:
            return
        error = self._make_folder(partial)
        error = self._any_error(error) or self._any_error(self._write(engine, partial, step, beside or {}))
        if error is None and self.world.is_main:
            error = _attempt(lambda: self._finish(partial, final, judged))
        error = self._any_error(error)
        if error is not None:
            raise UserError(self._not_written(partial, step, error))

    def load_newest(self, engine: Any, load_beside: Callable[[dict[str, Any]], None] | None = None) -> int:
        """Restore the newest whole checkpoint, if there is one; returns the number of steps done (0 without
        one).

        load_beside is given what `save` was given beside the engine ({} if that was nothing). The number of
        processes may be another one than that of the run before, the number of records per step may not.

        Errors:
            UserError when no checkpoint is whole, or when this run cannot go on from it.
        """
        step = self.world.from_main(self._choose() if self.world.is_main else None)
        if isinstance(step, str):
            raise UserError(step)
        if step == 0:
            return 0
        folder = self.path(step)
        written = json.loads((folder / STATE).read_text())
        self._check_batch(folder, written, engine)
        stage = int(engine.zero_optimization_stage())
        moved = (written["world_size"], written.get("zero_stage", stage)) != (self.world.size, stage)
        if moved and (stage or written.get("zero_stage")):
            from .resharding import load_resharded

            load_resharded(engine, folder, written.get("zero_stage", stage))
        else:
            path, _ = engine.load_checkpoint(str(self.folder), tag=folder.name)
            if path is None:
                raise UserError(f"{folder} cannot be read; remove it to go on from the checkpoint before")
        if load_beside is not None:
            load_beside(read_beside(folder))
        return int(written["step"])

    def _all_steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.match(path.name)))

    def _choose(self) -> int | str:
        """The step to go on from, or what is wrong; names damaged checkpoints, removes leftovers."""
        for leftover in self.folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(leftover, ignore_errors=True)
        for torn in self.folder.glob(f".{Path(BEST).stem}-*"):
            torn.unlink(missing_ok=True)
        damaged: list[str] = []
        for step in reversed(self._all_steps()):
            wrong = fault(self.path(step))
            if wrong is None:
                for line in damaged:
                    print(f"{line}; going on from step {step}", file=sys.stderr)
                return step
            damaged.append(f"checkpoint {self.path(step)} is incomplete: {wrong}")
        if damaged:
            return f"{damaged[0]}; none before it is whole: remove {self.folder} to start anew"
        return 0

    def _check_batch(self, folder: Path, written: dict[str, Any], engine: Any) -> None:
        before, now = written.get("global_batch"), int(engine.train_batch_size())
        if before is not None and before != now:
            raise UserError(
                f"{folder} was written by a run of {before} records per step, this one takes {now} "
                f"(data.micro_batch_size x run.gradient_accumulation_steps x {self.world.size} processes); "
                "set them so that the product stays, or give another output folder"
            )

    def _make_folder(self, partial: Path) -> str | None:
        def make() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

        return _attempt(make) if self.world.is_main else None

    def _write(self, engine: Any, partial: Path, step: int, beside: dict[str, Any]) -> str | None:
        """All files of a checkpoint, the state last; what went wrong on this rank."""
        with recorded_errors(engine.checkpoint_engine) as errors:
            engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        if errors or not self.world.is_main:
            return errors[0] if errors else None
        # Other ranks' files are complete, because DeepSpeed waits for all of them at the end.
        about = {
            "step": step,
            "world_size": self.world.size,
            "global_batch": int(engine.train_batch_size()),
            "zero_stage": int(engine.zero_optimization_stage()),
        }

        def write() -> None:
            recipe = self.folder.parent / RECIPE
            if recipe.is_file():  # so that a checkpoint by itself is enough to export the model
                shutil.copyfile(recipe, partial / RECIPE)
            if beside:
                torch.save(beside, partial / BESIDE)
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
            (partial / STATE).write_text(json.dumps({**about, "files": sizes}, indent=1))
            for path in (*files, partial / STATE, partial):
                flush_to_disk(path)

        return _attempt(write)

    def _finish(self, partial: Path, final: Path, judged: JudgedBy | None) -> None:
        _remove(final)  # a damaged one, passed over at the start
        partial.rename(final)
        flush_to_disk(self.folder)
        step = int(final.name.removeprefix("step-"))
        if self.keep_best and judged is not None and self._is_best(judged):
            with atomic_file(self.folder / BEST) as path:
                path.write_text(json.dumps({"step": step, **asdict(judged)}))
                flush_to_disk(path)
        best = self.best() if self.keep_best else None
        kept = {*self.steps()[-self.keep :], *([best["step"]] if best else [])}
        for old in self._all_steps():
            if old not in kept:
                _remove(self.path(old))

    def _is_best(self, judged: JudgedBy) -> bool:
        best = self.best()
        if best is None or best["data"] != judged.data:  # losses on different data do not compare
            return best is None or judged.data == "validation"
        return judged.loss < best["loss"]

    def _any_error(self, error: str | None) -> str | None:
        """The first error of any rank, on all of them."""
        return next((found for found in self.world.gather(error) if found is not None), None)

    def _not_written(self, partial: Path, step: int, error: str) -> str:
        if self.world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        whole = self.steps()
        before = f"the newest before it is step {whole[-1]}" if whole else "there is none before it"
        free = shutil.disk_usage(self.folder).free / 1e9 if self.folder.is_dir() else 0.0
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({error}; {free:.1f} GB "
            f"free), so the run stops; {before}: make room and start the run again"
        )


def fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint's folder, or None for a whole one. Sizes are compared, not contents."""
    try:
        written = json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return f"{STATE} is missing or torn"
    for name, size in written.get("files", {}).items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} of {size} bytes"
    return None


def read_beside(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds beside the engine's state: ``objective``, ``weight_average``, or neither."""
    for name in (BESIDE, _OLD_BESIDE):
        if (folder / name).is_file():
            return torch.load(folder / name, map_location="cpu", weights_only=True)
    return {}


@contextmanager
def recorded_errors(writer: Any) -> Iterator[list[str]]:
    """DeepSpeed's writer, with errors collected instead of raised.

    A process that left in the middle of saving would have the others wait for it for ever.
    """
    errors: list[str] = []
    save = writer.save

    def attempt(*args: Any, **kwargs: Any) -> None:
        error = _attempt(lambda: save(*args, **kwargs))
        if error is not None:
            errors.append(error)

    writer.save = attempt
    try:
        yield errors
    finally:
        del writer.save


def flush_to_disk(path: Path) -> None:
    """Have the system write a file or a folder's entries out (fsync), so that a power cut keeps them."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Delete a checkpoint; renamed first, so that one killed in between is a leftover, not a checkpoint."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.old{_PARTIAL}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _attempt(action: Callable[[], Any]) -> str | None:
    """Do it; the first line of what a disk or torch's writer raised, if they did."""
    try:
        action()
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        # How torch says that fewer bytes arrived than it wrote.
        return f"a file could not be written in full: {reason}" if "inline_container" in reason else reason
    return None
