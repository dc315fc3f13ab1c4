"""Resume with another number of processes, or another ZeRO stage, than the checkpoint was written with.

DeepSpeed restores only checkpoints of the same number of processes; its universal checkpoints need a
conversion first, and at stage 3 lose the weight decay of all parameter groups but the first. Here every rank
cuts its partition out of the tensors of all files and loads it as DeepSpeed's own state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UserError
from .deepspeed import MASTER, MODEL_FILES, Share, load_counters, load_shares, load_untrained, own_shares
from .saved_state import OptimizerState, load_file, saved_weights


def load_resharded(engine: Any, folder: Path, stage: int) -> None:
    """Restore the checkpoint in ``folder``, of ZeRO stage ``stage``, into an engine of stage 1, 2 or 3.

    Errors:
        UserError for a change from or to stage 0, and for an optimizer other than AdamW.
    """
    now = int(engine.zero_optimization_stage())
    if not stage or not now:
        raise UserError(
            f"{folder} was written with run.zero_stage {stage}, this run has {now}; stage 0 cannot be "
            "changed from or to another one: set it back, or give another output folder"
        )
    saved = OptimizerState(folder, stage)
    if saved.others:
        raise UserError(
            f"{folder}: the optimizer's {', '.join(sorted(saved.others))} cannot be partitioned again, only "
            "AdamW's state can; resume with the same number of processes and the same run.zero_stage"
        )
    shares = own_shares(engine)
    trained = {name for share in shares for _, name, *_ in share.pieces}
    if not trained <= saved.shapes.keys():
        raise RuntimeError(f"no state of {sorted(trained - saved.shapes.keys())[:3]}")
    load_untrained(engine, saved_weights(folder, stage))
    parts = [_cut(saved, share) for share in shares]
    masters = [master for master, _ in parts]
    load_shares(engine, masters, {number: state for number, (_, state) in enumerate(parts)})
    load_counters(engine, load_file(next(iter(sorted(folder.glob(MODEL_FILES))))))


def _cut(saved: OptimizerState, share: Share) -> tuple[Tensor, dict[str, Any]]:
    """This rank's vector of master weights for one parameter group, and its optimizer state."""
    state: dict[str, Any] = {}
    for start, name, first, count in share.pieces:
        for key in saved.divided_keys(name):
            vector = state.setdefault(key, torch.zeros(share.shape, dtype=torch.float32))
            vector[start : start + count] = saved.part(name, key, first, count)
        # Each group needs its own step counter: a shared one would advance twice.
        state |= {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in saved.common[name].items()
        }
    master = state.pop(MASTER, torch.zeros(share.shape, dtype=torch.float32))
    return master, state
