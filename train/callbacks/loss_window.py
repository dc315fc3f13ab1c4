"""The training loss by which checkpoints are compared where no validation loss is given."""

from __future__ import annotations

import torch

from ..backend.checkpoint import JudgedBy
from ..backend.distributed import World


class LossWindow:
    """The mean of the weighted training loss over the steps since it was last read, over all ranks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._sum, self._steps = torch.zeros((), dtype=torch.float64, device=world.device), 0

    def add(self, loss: torch.Tensor, divisor: int) -> None:
        """This rank's share of one micro-batch, as it goes into the backward pass (times ``divisor``)."""
        self._sum += loss.detach().double() / divisor

    def end_step(self) -> None:
        self._steps += 1

    def read(self) -> JudgedBy | None:
        """The mean, once for all ranks; None when no step was taken. Reading starts anew."""
        if not self._steps:
            return None
        mean = float(self.world.sum(self._sum)) / self._steps
        self._sum, self._steps = torch.zeros_like(self._sum), 0
        return JudgedBy(mean, "training")
