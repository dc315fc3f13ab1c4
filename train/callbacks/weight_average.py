"""An exponential moving average of the trained weights, for the export."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .base import Callback, TrainState

_WARMUP = 10  # steps in which the average follows the weights more closely


class WeightAverage(Callback):
    """Averages of all trained parameters of `model`, in fp32.

    Up to ZeRO stage 2 every process holds complete weights and so keeps the same averages.

    Args:
        decay: weight of the old average in the new one; about 1 / (1 - decay) steps are averaged.
    """

    state_name = "weight_average"

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.num_updates = model, decay, 0
        self._averages = [p.detach().float().clone() for p in self._parameters().values()]

    def after_step(self, state: TrainState) -> None:
        self.update()

    @torch.no_grad()
    def update(self) -> None:
        """Include the present weights."""
        self.num_updates += 1
        # (1 + n) / (10 + n) soon forgets the initial weights.
        decay = min(self.decay, (1 + self.num_updates) / (_WARMUP + self.num_updates))
        weights = [parameter.detach().float() for parameter in self._parameters().values()]
        torch._foreach_lerp_(self._averages, weights, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the model's weights are the averages."""
        parameters = list(self._parameters().values())
        trained = [parameter.detach().clone() for parameter in parameters]
        self._assign(parameters, self._averages)
        try:
            yield
        finally:
            self._assign(parameters, trained)

    def state_dict(self) -> dict[str, Any]:
        """The averages by parameter name, on the CPU, and the number of steps in them."""
        named = zip(self._parameters(), self._averages, strict=True)
        return {"num_updates": self.num_updates, "averages": {name: value.cpu() for name, value in named}}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Inverse of `state_dict`; without saved averages, start from the model's weights."""
        self.num_updates = int(saved.get("num_updates", 0))
        averages = saved.get("averages", self._parameters())
        self._assign(self._averages, [averages[name] for name in self._parameters()])

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @staticmethod
    @torch.no_grad()
    def _assign(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
