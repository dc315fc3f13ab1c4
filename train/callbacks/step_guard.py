"""Skip steps with a non-finite loss or gradient norm, or with a norm far above the usual.

A step is skipped on all processes: neither weights nor optimizer state change, while the learning rate and
the data advance as usual.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import torch

from ...common.errors import UserError
from ..backend.deepspeed import ask_before_updates, zero_gradient_norm
from .base import Callback, TrainState

_HISTORY = 128  # norms whose median is "the usual"
_ENOUGH = 16  # norms needed before one can be called a spike
_SHOWN = 8  # record ids in the message; the file lists them all


class StepGuard(Callback):
    """Judges every optimizer step of a run.

    Args:
        engine: DeepSpeed's engine.
        folder: of the run; skipped steps are appended to its ``skipped-steps.jsonl``.
        spike_factor: allowed multiple of the running median of the norms; 0 allows any finite norm.
        max_skipped: UserError after this many skipped steps in a row.
    """

    state_name = "guard"

    def __init__(self, engine: Any, folder: Path, spike_factor: float, max_skipped: int) -> None:
        self.engine, self.path = engine, folder / "skipped-steps.jsonl"
        self.spike_factor, self.max_skipped = spike_factor, max_skipped
        self.norm: float | None = None  # of the last step, before clipping
        self._norms: deque[float] = deque(maxlen=_HISTORY)
        self._skipped, self._in_a_row = 0, 0
        self._finite = True
        self._fault: str | None = None
        self._judged = False
        ask_before_updates(engine, self._is_allowed)

    def before_update(self, state: TrainState) -> None:
        self._judged, self._fault = False, None
        non_finite = torch.stack(state.losses).isfinite().logical_not().sum().double()
        self._finite = float(state.world.sum(non_finite)) == 0.0
        if not self.engine.zero_optimization():  # every process holds all gradients, summed over processes
            gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self.norm = float(torch.nn.utils.get_total_norm(gradients))

    def after_update(self, state: TrainState) -> None:
        """Set ``state.skipped``. UserError on all processes when too many steps in a row were skipped."""
        if not self._judged:  # DeepSpeed itself refused the norm, and did not step its schedule
            self.norm = math.nan
            self._judge()
            self.engine.lr_scheduler.step()
        state.skipped = None
        if self._fault is None:
            self._in_a_row = 0
            return
        self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
        ids, step = self._suspects(state), state.step + 1
        if state.world.is_main:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "reason": self._fault, "records": ids}) + "\n")
        shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
        state.skipped = f"step {step} skipped: {self._fault}; records: {shown or 'unknown'}"
        if self._in_a_row >= self.max_skipped:
            raise UserError(
                f"{self._in_a_row} steps in a row were skipped, the last because {self._fault}; their "
                f"records are listed in {self.path}, the checkpoints are older: start again with a lower "
                "optimizer.lr or optimizer.gradient_clipping, or look for broken numbers in those records"
            )

    def on_log(self, state: TrainState) -> None:
        if self.norm is not None:
            state.metrics.record("gradient_norm", self.norm, reduce="main")
        state.metrics.record("skipped_steps", self._skipped, reduce="main")

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self._norms), "skipped": self._skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        if saved:
            self._norms.extend(float(norm) for norm in saved["norms"])
            self._skipped, self._in_a_row = int(saved["skipped"]), int(saved["in_a_row"])

    def _is_allowed(self) -> bool:
        """Whether the optimizer may step; asked once for each of ZeRO's parameter groups."""
        if not self._judged:
            if self.engine.zero_optimization():
                self.norm = zero_gradient_norm(self.engine)
            self._judge()
        return self._fault is None

    def _judge(self) -> None:
        self._judged = True
        norm = self.norm
        usual = statistics.median(self._norms) if len(self._norms) >= _ENOUGH else math.inf
        if not self._finite:
            self._fault = "a loss is infinite or not a number"
        elif norm is None:
            return
        elif not math.isfinite(norm) or norm < 0:  # DeepSpeed reports an impossible norm as -1
            self._fault = "the gradient norm is infinite or not a number"
        elif self.spike_factor and norm > self.spike_factor * usual:
            self._fault = (
                f"the gradient norm {norm:.3g} is more than {self.spike_factor:g} times the usual {usual:.3g}"
            )
        else:
            self._norms.append(norm)

    def _suspects(self, state: TrainState) -> list[str]:
        """Ids of the records of micro-batches with a non-finite loss, or else of all, over all processes."""
        suspects = [
            one
            for batch, loss in zip(state.micro_batches, state.losses, strict=True)
            if self._finite or not bool(loss.isfinite())
            for one in batch.record_ids
        ]
        return [one for ids in state.world.gather(suspects) for one in ids]
