"""Memory before the first step: while a run starts or resumes; and the size of its checkpoints.

See `train.backend.placement`: process 0 has the values of new weights, saved ones stay in mapped files, and
each parameter is placed on its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..config.recipe import Recipe
from .sizes import Sizes

HEADER = ("GPUs", "GPU", "host, process 0", "host, each other", "host, resumed", "checkpoint")


@dataclass(frozen=True)
class Start:
    """Bytes before the first step.

    Args:
        gpu: the peak on each GPU.
        first, others: of host memory of process 0 and of each other one, mapped files left out.
        resumed: of each process that reads a checkpoint.
        checkpoint: of all files of one checkpoint.
    """

    gpu: float
    first: float
    others: float
    resumed: float
    checkpoint: float

    @classmethod
    def of(cls, recipe: Recipe, sizes: Sizes, gpus: int) -> Start:
        """With the recipe's stage, precision and averages."""
        run = recipe.run
        stage, bf16 = run.zero_stage, run.precision == "bf16"
        width = 2 if bf16 else 4
        masters = (4 if bf16 or stage else 0) * sizes.trained / (gpus if stage else 1)
        moments = 8 * sizes.trained / (gpus if stage else 1)
        averages = 0.0 if run.weight_average is None else 4.0 * sizes.trained
        part = width * sizes.total / (gpus if stage == 3 else 1)
        # DeepSpeed copies weights into one buffer (at stage 3 by way of the host), and the fp32 ones twice.
        copied = width * (sizes.largest if stage == 3 else sizes.trained if stage else 0)
        others = part if stage == 3 else 0.0
        weights = width * (sizes.frozen if stage == 3 else sizes.total)
        optimizer = (masters + moments) * (gpus if stage else 1)
        return cls(
            gpu=part + max(copied, 2 * masters, masters + averages),
            first=max(_values(recipe, sizes), others),
            others=others,
            resumed=masters + moments + averages + (weights / gpus if stage == 3 else weights),
            checkpoint=weights + optimizer + averages,
        )

    def cells(self) -> list[float]:
        return [self.gpu, self.first, self.others, self.resumed, self.checkpoint]


def _values(recipe: Recipe, sizes: Sizes) -> float:
    """Bytes of the values that process 0 has in its own memory, in fp32."""
    objective = recipe.mllm
    if objective is None or objective.lora is not None:
        return 4.0 * sizes.total
    if recipe.init_from is not None:
        return 0.0
    if isinstance(objective.llm, dict):
        return 4.0 * sizes.total
    return 4.0 * (sizes.heads + sizes.vocabulary)


def rows(recipe: Recipe, sizes: Sizes, gpus: Iterable[int]) -> list[tuple[int, list[float]]]:
    """One line of the table for each number of GPUs."""
    return [(count, Start.of(recipe, sizes, count).cells()) for count in gpus]
