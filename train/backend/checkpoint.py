"""Checkpoints of a run: written durably under a temporary name, renamed when complete, pruned, found again.

They hold weights, optimizer, scheduler, the step number, and the state of callbacks and objective. The
position in the data and all random numbers follow from the step number, so a resumed run equals an
uninterrupted one.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from ...common.errors import UserError, first_line, one_line
from .background_writing import FilesToWrite, Snapshot
from .checkpoint_files import (
    BEST,
    EXTRA,
    RECIPE,
    STEP_NAME,
    Best,
    SavedState,
    damage,
    fault,
    flush_to_disk,
    is_checkpoint,
    read_extra,
    writing,
)
from .deepspeed import recorded_writing
from .distributed import World, is_lost_connection
from .resharding import load_resharded

_PARTIAL = ".partial"
_LEFTOVER = re.compile(rf"{STEP_NAME.pattern}(\.old)?\{_PARTIAL}")


@dataclass(frozen=True)
class JudgedBy:
    """The loss by which checkpoints are compared; lower is better."""

    loss: float
    data: Literal["training", "validation"]


class _Pending(NamedTuple):
    """A checkpoint whose files are being written."""

    files: FilesToWrite
    state: SavedState
    judged: JudgedBy | None


class Checkpoints:
    """The folder ``checkpoints/`` of a run: one folder for each kept step; ``best.json`` names the best.

    A folder with a checkpoint's name is complete: it is written under a temporary name, flushed to disk
    (fsync) and renamed. `fault` and `damage` recognise later damage. Other files in the folder are neither
    read nor deleted.

    Args:
        keep: number of newest checkpoints to keep.
        keep_best: whether to keep the one with the lowest loss too.
        data: a digest of this run's records by source, for ``state.json``.
        in_background: whether `save` returns after a copy of the state in host memory, which a thread then
            writes. `poll` completes the checkpoint, as do `wait` and the next `save`.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        keep: int,
        keep_best: bool = True,
        data: Mapping[str, str] | None = None,
        *,
        in_background: bool = False,
    ) -> None:
        self.folder, self.world, self.keep, self.keep_best = folder, world, max(1, keep), keep_best
        self.data, self.in_background = dict(data or {}), in_background
        self._pending: _Pending | None = None
        self._damaged: set[int] = set()  # by their contents, which `fault` does not check

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Step numbers of the intact checkpoints, oldest first."""
        return [step for step in self._all_steps() if self._is_intact(step)]

    def best(self) -> Best | None:
        """The best checkpoint, if it exists and is intact."""
        best = Best.read(self.folder)
        return best if best is not None and self._is_intact(best.step) else None

    # ---- writing

    def save(
        self,
        engine: Any,
        step: int,
        extra: dict[str, Any] | None = None,
        judged: JudgedBy | None = None,
    ) -> None:
        """Write the checkpoint of ``step``, after the one before it; every rank calls this.

        Args:
            extra: state of callbacks and objective.
            judged: the loss for the comparison with other checkpoints; None leaves this one out of it.

        Errors:
            UserError on every rank if any of them could not write (a full disk). Earlier checkpoints are
            untouched, the incomplete one is removed.
        """
        self.wait()
        final = self.path(step)
        partial = final.with_name(final.name + _PARTIAL)
        if self.world.from_main(self._is_intact(step)):
            return
        try:
            self.world.on_main(lambda: self._make_folder(partial))
            files = FilesToWrite(partial)
            self.world.everywhere(lambda: self._collect(engine, files, extra or {}))
        except UserError as error:
            raise UserError(self._not_written(partial, step, str(error))) from error
        sizes = int(engine.train_batch_size()), int(engine.zero_optimization_stage())
        self._pending = _Pending(files, SavedState(step, self.world.size, *sizes, data=self.data), judged)
        if self.in_background:
            files.start()
        else:
            files.write()
            self.wait()

    def poll(self) -> None:
        """Complete the checkpoint if every rank's files are written. Called and raises as `save`."""
        if self._pending is not None and all(self.world.gather(self._pending.files.is_done())):
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is complete; every rank calls this. Errors: as `save`."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        partial, final = pending.files.folder, self.path(pending.state.step)
        try:
            written = self.world.everywhere(pending.files.result)
            checksums = {name: value for part in written for name, value in part.items()}
            state = replace(pending.state, checksums=checksums)
            self.world.on_main(lambda: self._finish(partial, final, state, pending.judged))
        except UserError as error:
            raise UserError(self._not_written(partial, pending.state.step, str(error))) from error
        self._damaged.discard(pending.state.step)

    @writing()
    def _make_folder(self, partial: Path) -> None:
        if _is_real_folder(partial):
            shutil.rmtree(partial, ignore_errors=True)
        _move_aside(partial)
        partial.mkdir(parents=True)

    @writing()
    def _collect(self, engine: Any, files: FilesToWrite, extra: dict[str, Any]) -> None:
        """This rank's files: DeepSpeed's, written already or copied, and on the main rank our own."""
        partial, snapshot = files.folder, Snapshot() if self.in_background else None
        copied = None if snapshot is None else snapshot.of
        with recorded_writing(engine, copied) as record:
            engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        if record.errors:
            raise record.errors[0]
        files.written, files.waiting = record.paths, record.waiting
        recipe = self.folder.parent / RECIPE
        if self.world.is_main and recipe.is_file():  # so that the checkpoint alone can be exported
            files.written.append(Path(shutil.copyfile(recipe, partial / RECIPE)))
        if self.world.is_main and extra:
            kept = extra if copied is None else copied(extra)
            files.waiting[partial / EXTRA] = lambda: torch.save(kept, partial / EXTRA)
        if snapshot is not None:
            snapshot.finish()

    @writing()
    def _finish(self, partial: Path, final: Path, state: SavedState, judged: JudgedBy | None) -> None:
        """Write ``state.json``, rename the folder, and remove checkpoints that are no longer kept."""
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sizes = {path.relative_to(partial).as_posix(): path.stat().st_size for path in files}
        replace(state, files=sizes).write(partial)
        flush_to_disk(partial)
        if _is_real_folder(final) and is_checkpoint(final):
            _remove(final)  # a damaged one, skipped at the start
        _move_aside(final)
        partial.rename(final)
        self._damaged.discard(state.step)
        flush_to_disk(self.folder)
        if self.keep_best and judged is not None and self._is_best(judged):
            Best(state.step, judged.loss, judged.data).write(self.folder)
        best = self.best() if self.keep_best else None
        kept = {*self.steps()[-self.keep :], *([best.step] if best else [])}
        for old in self._all_steps():
            if old not in kept and is_checkpoint(self.path(old)):
                _remove(self.path(old))

    def _is_best(self, judged: JudgedBy) -> bool:
        best = self.best()
        if best is None or best.data != judged.data:  # losses on different data are not comparable
            return best is None or judged.data == "validation"
        return judged.loss < best.loss

    def _not_written(self, partial: Path, step: int, error: str) -> str:
        if self.world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        intact = self.steps()
        before = f"the newest one is step {intact[-1]}" if intact else "there is no earlier one"
        free = shutil.disk_usage(self.folder).free / 1e9 if self.folder.is_dir() else 0.0
        return (
            f"the checkpoint of step {step} could not be written to {self.folder} ({error}; {free:.1f} GB "
            f"free), so the run stops; {before}: make room and start the run again"
        )

    # ---- reading

    def newest(self) -> int:
        """The step of the newest intact checkpoint, 0 without any; every rank calls this and gets the same.

        Damaged checkpoints are reported and skipped, leftovers of killed runs are removed.

        Errors:
            UserError if there are checkpoints and all are damaged.
        """
        damaged: list[str] = []
        for step in reversed(self.world.from_main(self._candidates() if self.world.is_main else None)):
            wrong = self._fault_of(step)
            if wrong is None:
                for line in damaged if self.world.is_main else []:
                    print(one_line(f"{line}; resuming from step {step}"), file=sys.stderr)
                return int(step)
            self._damaged.add(step)
            damaged.append(f"checkpoint {self.path(step)} {wrong}")
        if damaged:
            raise UserError(f"{damaged[0]}; no earlier one is intact: remove checkpoints/ to start again")
        return 0

    def load(
        self,
        engine: Any,
        step: int,
        load_extra: Callable[[dict[str, Any]], None] | None = None,
        any_batch: bool = False,
    ) -> None:
        """Restore the checkpoint of ``step``, as found by `newest`.

        The number of processes may differ from the run that wrote it, the number of records per step may not.

        Args:
            load_extra: is called with the `extra` that was saved ({} for none).
            any_batch: the number of records per step may differ too.

        Errors:
            UserError if this run cannot be resumed from it.
        """
        folder = self.path(step)
        state = SavedState.read(folder)
        if not any_batch:
            self._check_batch(folder, state, engine)
        try:
            self._restore(engine, folder, state)
            if load_extra is not None:
                load_extra(read_extra(folder))
        except UserError:
            raise
        except Exception as error:  # DeepSpeed and torch raise many types for foreign content
            if is_lost_connection(error):
                raise
            raise UserError(
                f"{folder} cannot be restored ({type(error).__name__}: {first_line(error)}): it is of "
                "another model, or damaged; remove it to resume from the previous checkpoint"
            ) from error

    def _restore(self, engine: Any, folder: Path, state: SavedState) -> None:
        stage = int(engine.zero_optimization_stage())
        before = stage if state.zero_stage is None else state.zero_stage
        if (state.world_size, before) != (self.world.size, stage) and (stage or before):
            load_resharded(engine, folder, before)
            return
        path, _ = engine.load_checkpoint(str(self.folder), tag=folder.name)
        if path is None:
            raise UserError(f"{folder} cannot be read; remove it to resume from the previous checkpoint")

    def _all_steps(self) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = ((path, STEP_NAME.fullmatch(path.name)) for path in self.folder.iterdir())
        return sorted(int(match[1]) for path, match in names if match and _is_real_folder(path))

    def _is_intact(self, step: int) -> bool:
        path = self.path(step)
        return step not in self._damaged and _is_real_folder(path) and fault(path) is None

    def _candidates(self) -> list[int]:
        """All steps with a folder; removes the leftovers of a killed run."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if _LEFTOVER.fullmatch(path.name) and _is_real_folder(path):
                    shutil.rmtree(path, ignore_errors=True)
                elif re.fullmatch(rf"\.{Path(BEST).stem}-.*\.json", path.name) and path.is_file():
                    path.unlink(missing_ok=True)
        return self._all_steps()

    def _fault_of(self, step: int) -> str | None:
        """What is wrong with a checkpoint, or None; each rank reads a part of the files."""
        folder = self.path(step)
        wrong = self.world.from_main(fault(folder) if self.world.is_main else None)
        if wrong is not None:
            return str(wrong)
        found = self.world.gather(damage(folder, self.world.rank, self.world.size))
        return next((wrong for wrong in found if wrong is not None), None)

    def _check_batch(self, folder: Path, state: SavedState, engine: Any) -> None:
        before, now = state.global_batch, int(engine.train_batch_size())
        if before is not None and before != now:
            raise UserError(
                f"{folder} was written by a run of {before} records per step, this one uses {now} "
                f"(data.micro_batch_size x run.gradient_accumulation_steps x {self.world.size} processes); "
                "keep the product, or give another output folder"
            )


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _move_aside(path: Path) -> None:
    """Rename foreign files under a name that the run needs; nothing is deleted."""
    if path.exists() or path.is_symlink():
        names = (path.with_name(f"{path.name}.aside-{number}") for number in range(1, 1000))
        path.rename(next(name for name in names if not name.exists() and not name.is_symlink()))


def _remove(folder: Path) -> None:
    """Rename, then delete a checkpoint: if killed in between, a leftover remains, not a broken checkpoint."""
    doomed = folder.with_name(f"{folder.name}.old{_PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed)
