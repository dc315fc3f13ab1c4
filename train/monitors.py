"""What a run says while it runs: a progress bar with losses, samples/s and time left; TensorBoard; a
JSON-lines log."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .distributed import World


class Monitor:
    """Reports steps on the main rank; silent on the others.

    ``log.jsonl`` holds one object per logged step and is the source of the reference curves; on resume,
    lines of steps that will be done again are dropped.
    """

    def __init__(
        self, folder: Path, world: World, total_steps: int, start: int, samples_per_step: int
    ) -> None:
        self.active = world.is_main
        self.samples_per_step = samples_per_step
        self._last = (start, time.perf_counter())
        self._alarms: set[str] = set()
        if not self.active:
            return
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / "log.jsonl"
        self._drop_lines_after(start)
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start if start else None)
        self.bar = tqdm(
            total=total_steps, initial=start, desc=folder.name, dynamic_ncols=True, mininterval=2.0
        )

    def _drop_lines_after(self, start: int) -> None:
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _step_of(line) <= start]
        self.path.write_text("".join(line + "\n" for line in kept))

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
        with self.path.open("a") as file:
            file.write(json.dumps({key: round(value, 6) for key, value in values.items()}) + "\n")
        for key, value in values.items():
            self.board.add_scalar(key, value, step)
        shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self.bar.set_postfix_str(" ".join(filter(None, (shown, summary, f"{rate:.0f} samples/s"))))

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


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line torn by a killed run
        return 1 << 62
