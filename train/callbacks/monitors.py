"""Reports of a run: progress bar, TensorBoard, Weights & Biases, and a log in JSON lines."""

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

from ...common.files import write_text
from ...common.json_files import JsonError, parse_json
from ..backend.distributed import World
from ..config.recipe import Recipe, plain_recipe
from .base import Callback, TrainState
from .losses import PREFIX


class Monitor(Callback):
    """Reports steps on the main process; silent on the others.

    ``log.jsonl`` holds one object per logged step; on resume, lines of steps that will be repeated are
    dropped.

    Args:
        start: steps already done.
        samples_per_step: over all processes.
    """

    def __init__(self, recipe: Recipe, world: World, start: int, samples_per_step: int) -> None:
        self.active = world.is_main
        self.samples_per_step = samples_per_step
        self._last = (start, time.perf_counter())
        self._alarms: set[str] = set()
        if not self.active:
            return
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(recipe.output)
        self.path = folder / "log.jsonl"
        self.validation_path = folder / "validation.jsonl"
        for path in (self.path, self.validation_path):
            _drop_lines_after(path, start)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start or None)
        self.bar = tqdm(
            total=recipe.run.steps, initial=start, desc=folder.name, dynamic_ncols=True, mininterval=2.0
        )
        self.wandb = None if recipe.run.wandb_project is None else _open_wandb(recipe, folder)

    def after_step(self, state: TrainState) -> None:
        if self.active:
            self.bar.update()

    def on_skipped_step(self, state: TrainState) -> None:
        self.message(state.skipped or "")
        self.after_step(state)

    def on_log(self, state: TrainState) -> None:
        rate = float(state.engine.get_lr()[0])
        others = {"learning_rate": rate, **state.objective.extra_metrics(), **state.stream.metrics()}
        for name, value in others.items():
            state.metrics.record(name, value, reduce="main")

    def on_metrics(self, state: TrainState, metrics: dict[str, float]) -> None:
        summary = " ".join(filter(None, (state.objective.summary(), state.stream.summary())))
        self.log(state.step, metrics, summary)
        self._warn(state.step, state.objective.alarms())

    def on_train_end(self, state: TrainState) -> None:
        self.close()

    def log(self, step: int, metrics: dict[str, float], summary: str = "") -> None:
        """Write the metrics of optimizer step ``step`` (the number of steps done)."""
        if not self.active:
            return
        previous, since = self._last
        now = time.perf_counter()
        rate = (step - previous) * self.samples_per_step / max(now - since, 1e-9)
        self._last = (step, now)
        self._write(self.path, {"step": step, **metrics, "samples_per_second": rate})
        losses = {key.removeprefix(PREFIX): n for key, n in metrics.items() if key.startswith(PREFIX)}
        losses = {name: value for name, value in losses.items() if "/" not in name}
        parts = _in_words(losses), summary, f"{rate:.0f} samples/s"
        self.bar.set_postfix_str(" ".join(filter(None, parts)))

    def on_validation(self, state: TrainState, losses: dict[str, float], images: dict[str, Path]) -> None:
        """Write held-out losses to ``validation.jsonl`` and show generated images (PNG files) by prompt."""
        if not self.active:
            return
        values = {f"validation/{name}": value for name, value in losses.items()}
        self._write(self.validation_path, {"step": state.step, **values})
        for prompt, path in images.items():
            with Image.open(path) as image:
                pixels = np.asarray(image)
            self.board.add_image(f"generated/{prompt}", pixels, state.step, dataformats="HWC")
            if self.wandb is not None:
                self.wandb.log({f"generated/{prompt}": self.wandb.Image(pixels)}, step=state.step)
        if losses:
            self.message(f"step {state.step}: validation: {_in_words(losses)}")

    def _write(self, path: Path, values: dict[str, Any]) -> None:
        # JSON has no infinite numbers, such as the gradient norm of a skipped step.
        finite = {key: round(value, 6) if math.isfinite(value) else None for key, value in values.items()}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")
        for key, value in values.items():
            self.board.add_scalar(key, value, values["step"])
        if self.wandb is not None:
            self.wandb.log(values, step=values["step"])

    def _warn(self, step: int, alarms: dict[str, str]) -> None:
        """Print alarms that were not raised at the last log line."""
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


def _in_words(losses: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in losses.items())


def _drop_lines_after(path: Path, start: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = [line for line in lines if line and _step_of(line) <= start]
    write_text(path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> int:
    try:
        return int(parse_json(line)["step"])
    except (JsonError, KeyError, TypeError, ValueError, OverflowError):  # a line torn by a killed run
        return 1 << 62


def _open_wandb(recipe: Recipe, folder: Path) -> Any:
    """The package wandb, logging to a W&B run that is resumed whenever this run is."""
    import wandb

    # The id follows from the folder, so a resumed run continues the same curves.
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    wandb.init(
        project=recipe.run.wandb_project,
        name=folder.name,
        id=name,
        dir=str(folder),
        resume="allow",
        config=plain_recipe(recipe),
    )
    return wandb
