"""What a run says while it runs: a progress bar with losses, samples/s and time left; TensorBoard; a
JSON-lines log."""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ...common.files import atomic_file
from ...common.json_files import JsonError, parse_json
from ..backend.distributed import World


class Monitor:
    """Reports steps on the main rank; silent on the others.

    ``log.jsonl`` holds one object per logged step and is the source of the reference curves; on resume,
    lines of steps that will be done again are dropped.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        total_steps: int,
        start: int,
        samples_per_step: int,
        wandb_project: str | None = None,
    ) -> None:
        self.active = world.is_main
        self.samples_per_step = samples_per_step
        self._last = (start, time.perf_counter())
        self._alarms: set[str] = set()
        if not self.active:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "log.jsonl"
        self.validation_path = folder / "validation.jsonl"
        for path in (self.path, self.validation_path):
            self._drop_lines_after(path, start)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start if start else None)
        self.bar = tqdm(
            total=total_steps, initial=start, desc=folder.name, dynamic_ncols=True, mininterval=2.0
        )
        self.wandb = None if wandb_project is None else _open_wandb(wandb_project, folder)

    @staticmethod
    def _drop_lines_after(path: Path, start: int) -> None:
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        kept = [line for line in lines if line and _step_of(line) <= start]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def advance(self) -> None:
        if self.active:
            self.bar.update()

    def log(self, step: int, losses: dict[str, float], others: dict[str, float], summary: str = "") -> None:
        """Write the metrics of optimizer step ``step`` (the number of steps done)."""
        if not self.active:
            return
        previous, since = self._last
        now = time.perf_counter()
        rate = (step - previous) * self.samples_per_step / max(now - since, 1e-9)
        self._last = (step, now)
        values: dict[str, Any] = {"step": step, **{f"loss/{k}": v for k, v in losses.items()}, **others}
        values["samples_per_second"] = rate
        self._write(self.path, values)
        shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items() if "/" not in name)
        self.bar.set_postfix_str(" ".join(filter(None, (shown, summary, f"{rate:.0f} samples/s"))))

    def log_validation(self, step: int, losses: dict[str, float], drawings: dict[str, Path]) -> None:
        """Write held-out losses into ``validation.jsonl``, and show the drawings (PNG files) by prompt."""
        if not self.active:
            return
        values = {"step": step, **{f"validation/{name}": value for name, value in losses.items()}}
        self._write(self.validation_path, values)
        for prompt, path in drawings.items():
            with Image.open(path) as image:
                self.board.add_image(f"drawing/{prompt}", np.asarray(image), step, dataformats="HWC")
            if self.wandb is not None:
                self.wandb.log({f"drawing/{prompt}": _wandb_image(path)}, step=step)
        if losses:
            shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
            self.message(f"step {step}: validation: {shown}")

    def _write(self, path: Path, values: dict[str, Any]) -> None:
        # JSON has no infinite numbers, such as the gradient norm of a skipped step.
        finite = {key: round(value, 6) if math.isfinite(value) else None for key, value in values.items()}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")
        for key, value in values.items():
            self.board.add_scalar(key, value, values["step"])
        if self.wandb is not None:
            self.wandb.log(values, step=values["step"])

    def warn(self, step: int, alarms: dict[str, str]) -> None:
        """Print alarms that were not there at the last log line."""
        for key in alarms.keys() - self._alarms:
            self.message(f"step {step}: warning: {alarms[key]}")
        self._alarms = set(alarms)

    def message(self, text: str) -> None:
        if self.active:
            self.bar.write(text)

    def close(self) -> None:
        if self.active:
            self.bar.close()
            self.board.close()
            if self.wandb is not None:
                self.wandb.finish()


def _open_wandb(project: str, folder: Path) -> Any:
    """A run of Weights & Biases that goes on when this one does."""
    import wandb

    # The id follows from the folder, so a resumed run draws on into the same curves.
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return wandb.init(project=project, name=folder.name, id=name, dir=str(folder), resume="allow")


def _wandb_image(path: Path) -> Any:
    import wandb

    return wandb.Image(str(path))


def _step_of(line: str) -> int:
    try:
        return int(parse_json(line)["step"])
    except (JsonError, KeyError, TypeError, ValueError, OverflowError):  # a line torn by a killed run
        return 1 << 62
