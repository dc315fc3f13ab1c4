"""Steps that must not happen: a loss or gradient norm that is no number, or a norm far above the usual.

Such a step is skipped on all processes alike: neither weights nor the optimizer's state change, while the
learning rate and the data go on as if it had been done. DeepSpeed computes the gradient norm inside its own
step, so the guard sits where all ZeRO stages end: in the step of the optimizer that they wrap.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ...common.errors import UserError
from ..backend.distributed import World

_HISTORY = 128  # norms whose median is "the usual"
_ENOUGH = 16  # before so many are known, no norm is called a spike
_SHOWN = 8  # record ids in the message; the file has them all


class StepGuard:
    """Judges every optimizer step of a run.

    Args:
        engine: DeepSpeed's engine.
        optimizer: the optimizer that was given to it.
        folder: of the run; skipped steps are appended to ``skipped-steps.jsonl`` there.
        spike_factor: times the running median of the norms; 0 switches that off.
        max_skipped: UserError after so many skipped steps in a row.
    """

    def __init__(
        self,
        engine: Any,
        optimizer: torch.optim.Optimizer,
        world: World,
        folder: Path,
        spike_factor: float,
        max_skipped: int,
    ) -> None:
        self.engine, self.world, self.path = engine, world, folder / "skipped-steps.jsonl"
        self.spike_factor, self.max_skipped = spike_factor, max_skipped
        self.norm: float | None = None  # of the last step, before clipping
        self._norms: deque[float] = deque(maxlen=_HISTORY)
        self._skipped, self._in_a_row = 0, 0
        self._finite = True
        self._fault: str | None = None
        self._judged = False
        self._step = optimizer.step
        guarded = wraps(optimizer.step)(partial(self._guarded_step))
        guarded._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # torch warns without it
        optimizer.step = guarded  # type: ignore[method-assign]

    @property
    def metrics(self) -> dict[str, float]:
        norm = {} if self.norm is None else {"gradient_norm": self.norm}
        return {**norm, "skipped_steps": float(self._skipped)}

    def step(self, losses: list[torch.Tensor], last: bool) -> None:
        """``engine.step()`` after the backward pass of the newest of this step's micro-batch losses.

        Args:
            losses: of this rank, one per micro-batch so far.
            last: whether the step's gradient is complete, so that the optimizer moves.
        """
        if last:
            self._judged, self._fault = False, None
            self._finite = self._finite_everywhere(losses)
            if not self.engine.zero_optimization():
                self.norm = self._norm_of_whole_gradients()
        self.engine.step()
        if last and not self._judged:  # DeepSpeed itself refused the norm, and left its schedule behind
            self.norm = math.nan
            self._judge()
            self.engine.lr_scheduler.step()

    def accepted(self, step: int, micro_batches: list[list[str]], losses: list[torch.Tensor]) -> str | None:
        """None when the last step was done, else a line on why it was skipped.

        Args:
            step: its number.
            micro_batches: ids of this rank's records, by micro-batch.
            losses: of this rank, by micro-batch.

        Errors:
            UserError on all ranks when too many steps in a row were skipped.
        """
        if self._fault is None:
            self._in_a_row = 0
            return None
        self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
        ids = self._gather(micro_batches, losses)
        if self.world.is_main:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "reason": self._fault, "records": ids}) + "\n")
        shown = ", ".join(ids[:_SHOWN]) + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
        line = f"step {step} skipped: {self._fault}; records: {shown or 'unknown'}"
        if self._in_a_row >= self.max_skipped:
            raise UserError(
                f"{self._in_a_row} steps in a row were skipped, the last because {self._fault}; their "
                f"records are in {self.path}, the checkpoints are from before: start again with a lower "
                "optimizer.lr or optimizer.gradient_clipping, or look for broken numbers in those records"
            )
        return line

    def state_dict(self) -> dict[str, Any]:
        return {"norms": list(self._norms), "skipped": self._skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._norms.extend(float(norm) for norm in state["norms"])
        self._skipped, self._in_a_row = int(state["skipped"]), int(state["in_a_row"])

    def _guarded_step(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer's step, which ZeRO calls once for each of its groups."""
        if not self._judged:
            if self.engine.zero_optimization():
                norm = self.engine.optimizer._global_grad_norm
                self.norm = None if norm is None else float(norm)
            self._judge()
        return self._step(*args, **kwargs) if self._fault is None else None

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

    def _finite_everywhere(self, losses: list[torch.Tensor]) -> bool:
        wrong = torch.stack([loss.detach() for loss in losses]).isfinite().logical_not().sum().double()
        return float(self.world.sum(wrong)) == 0.0

    def _norm_of_whole_gradients(self) -> float:
        """At stage 0 every rank holds all gradients, summed over ranks by the backward pass."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _gather(self, micro_batches: list[list[str]], losses: list[torch.Tensor]) -> list[str]:
        """Ids of the micro-batches whose loss is no number, or else of all, over all ranks."""
        wrong = [not bool(loss.isfinite()) for loss in losses]
        chosen = wrong if not self._finite else [True] * len(losses)
        own = [one for ids, use in zip(micro_batches, chosen, strict=True) if use for one in ids]
        if self.world.size == 1:
            return own
        everyone: list[Any] = [None] * self.world.size
        dist.all_gather_object(everyone, own)
        return [one for ids in everyone for one in ids]
