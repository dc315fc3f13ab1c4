"""Steps of tiny models in DeepSpeed's engine that show the number formats of a run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..config.data import DataConfig, SourceConfig
from ..config.mllm import MllmObjectiveConfig
from ..config.recipe import Recipe
from ..config.run import RunConfig
from ..optimizers import build_optimizer, build_scheduler
from .deepspeed import build_engine, zero_gradient_norm
from .distributed import World
from .saved_state import load_file
from .zero import deepspeed_config

MICRO_BATCHES = 16
#: In bf16, 1 + SMALL is 1.
SMALL = 2.0**-10


class ProductProbe(nn.Module):
    """A linear layer that notes the format of its product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.seen: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        product = self.linear(x)
        self.seen = product.dtype
        return product.float().sum()


class GradientProbe(nn.Module):
    """72 parameters, the gradient of each of which is the input."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.vector = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return (self.matrix * x).sum() + (self.vector * x).sum()


def probe_recipe(**run: Any) -> Recipe:
    """A recipe with these settings of its section ``run``; its model and data do not exist."""
    data = DataConfig(sources={"none": SourceConfig(path="none")}, micro_batch_size=1)
    mllm = MllmObjectiveConfig(llm="none", visual_tokenizer="none")
    return Recipe(output="none", data=data, run=RunConfig(steps=9, **run), mllm=mllm)


def probe_engine(model: nn.Module, world: World, **run: Any) -> Any:
    """DeepSpeed's engine as the trainer builds it; at stage 3 small parameters are divided too."""
    recipe = probe_recipe(**run)
    config = deepspeed_config(recipe, world.size)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    optimizer = build_optimizer(model.to(world.device), recipe.optimizer)
    scheduler = build_scheduler(optimizer, recipe.run.steps, recipe.schedule)
    return build_engine(model, optimizer, scheduler, config, partial(load_file, mapped=False))


def product_format(engine: Any, world: World) -> torch.dtype | None:
    """The format of a matrix product in a step of an engine around `ProductProbe`."""
    weight = torch.bfloat16 if engine.bfloat16_enabled() else torch.float32
    engine.backward(engine(torch.ones(2, 8, dtype=weight, device=world.device)))
    engine.step()
    seen: torch.dtype | None = engine.module.seen
    return seen


def mean_gradient(engine: Any, world: World) -> float:
    """The gradient after MICRO_BATCHES, of which the first has the gradient 1 and the others SMALL.

    Args:
        engine: around `GradientProbe`, in bf16 at stage 1, 2 or 3, accumulating MICRO_BATCHES.
    """
    for number in range(MICRO_BATCHES):
        if number:
            engine.step()
        x = torch.tensor(SMALL if number else 1.0, dtype=torch.bfloat16, device=world.device)
        engine.backward(engine(x))
    engine.step()
    norm = zero_gradient_norm(engine)
    assert norm is not None
    return float(norm / 72**0.5)


#: The mean gradient of `mean_gradient` without rounding.
EXACT_GRADIENT = (1 + (MICRO_BATCHES - 1) * SMALL) / MICRO_BATCHES
