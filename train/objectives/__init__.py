"""What a run minimises: one class per objective, all with the interface of :class:`Objective`."""

from __future__ import annotations

from ..config.recipe import Recipe
from .base import LossTerm, Objective

__all__ = ["LossTerm", "Objective", "build_objective"]


def build_objective(recipe: Recipe) -> Objective:
    """The objective of the one section that the recipe holds, with its model built or loaded."""
    if recipe.contrastive is not None:
        from .contrastive import ContrastiveObjective

        return ContrastiveObjective(recipe.contrastive)
    if recipe.tokenizer is not None:
        from .tokenizer.objective import TokenizerObjective

        return TokenizerObjective(recipe.tokenizer)
    assert recipe.mllm is not None  # Recipe checks that exactly one section is given
    from .mllm import MllmObjective

    return MllmObjective(recipe.mllm, recipe.seed, recipe.data.max_length, recipe.init_from)
