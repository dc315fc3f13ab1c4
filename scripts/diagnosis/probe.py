"""One of several processes: an all-reduce and a step of DeepSpeed's engine. `check_processes` launches it.

Prints one JSON object on the main rank.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...train.backend.deepspeed import build_engine
from ...train.backend.distributed import join_world, leave_world

WIDTH = 8


def main() -> None:
    world = join_world(threads=1)
    total = world.sum(torch.ones(1, device=world.device))
    before, after = one_step(world.device)
    if world.is_main:
        backend = torch.distributed.get_backend()
        print(json.dumps({"backend": backend, "sum": float(total), "before": before, "after": after}))
    leave_world()


def one_step(device: torch.device) -> tuple[float, float]:
    """The loss of a linear layer before and after one ZeRO-2 step."""
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
    }
    engine = build_engine(model, optimizer, schedule, config, read=lambda path: torch.load(path))
    inputs = torch.ones(1, WIDTH, device=device)
    losses = []
    for _ in range(2):
        loss = (engine(inputs) - 1.0).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    return losses[0], losses[1]


if __name__ == "__main__":
    os.chdir(Path(os.environ.get("TMPDIR", "/tmp")))
    main()
