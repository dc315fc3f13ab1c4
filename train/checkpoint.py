"""Checkpoints of a run: written beside, renamed when whole, pruned, found again.

Only weights, optimizer, scheduler and the step number are stored, and what an objective trains beside them.
The data position and all random numbers follow from the step number, so a resumed run is the uninterrupted
run.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..tokenizer.errors import UserError
from .distributed import World

STATE = "state.json"
EXTRA = "objective.pt"
_NAME = re.compile(r"step-(\d{8})$")


class Checkpoints:
    """The folder ``checkpoints/`` of a run.

    Args:
        keep: how many of the newest checkpoints stay.
    """

    def __init__(self, folder: Path, world: World, keep: int) -> None:
        self.folder, self.world, self.keep = folder, world, max(1, keep)

    def steps(self) -> list[int]:
        """Step numbers of the whole checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.match(path.name)))

    def save(self, engine: Any, step: int, extra: dict[str, Any] | None = None) -> None:
        """Write the checkpoint of ``step``, with what is trained beside the engine; every rank calls this."""
        name = f"step-{step:08d}"
        partial, final = self.folder / f"{name}.partial", self.folder / name
        if final.exists():
            return
        if self.world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        self.world.barrier()
        engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        if self.world.is_main:
            if extra:
                torch.save(extra, partial / EXTRA)
            (partial / STATE).write_text(json.dumps({"step": step, "world_size": self.world.size}))
        self.world.barrier()
        if self.world.is_main:
            partial.rename(final)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.folder / f"step-{old:08d}")
        self.world.barrier()

    def load_newest(self, engine: Any, load_extra: Callable[[dict[str, Any]], None] | None = None) -> int:
        """Restore the newest checkpoint, if there is one; returns the number of steps done (0 without one).

        load_extra is given what `save` was given beside the engine.

        Errors:
            UserError when the checkpoint was written by another number of processes.
        """
        steps = self.steps()
        if not steps:
            return 0
        folder = self.folder / f"step-{steps[-1]:08d}"
        written = json.loads((folder / STATE).read_text())
        if written["world_size"] != self.world.size:
            raise UserError(
                f"{folder} was written by {written['world_size']} processes, this run has "
                f"{self.world.size}; start as many as then, or give another output folder"
            )
        path, _ = engine.load_checkpoint(str(self.folder), tag=folder.name)
        if path is None:
            raise UserError(f"{folder} cannot be read; remove it to go on from the checkpoint before")
        if load_extra is not None and (folder / EXTRA).is_file():
            load_extra(torch.load(folder / EXTRA, map_location="cpu", weights_only=True))
        return int(written["step"])
