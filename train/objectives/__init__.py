"""Training objectives, one class each, with the interface of :class:`Objective`."""

from __future__ import annotations

from dataclasses import replace

from ...mllm.assembly.weights import Weights
from ..config.recipe import Recipe
from .base import LossTerm, Objective

__all__ = ["LossTerm", "Objective", "build_objective"]


def build_objective(recipe: Recipe, weights: Weights = Weights.LOADED) -> Objective:
    """Build the objective of the recipe's one objective section, with its model.

    Args:
        weights: of the unified model; the networks of the other objectives are always loaded.
    """
    if recipe.contrastive is not None:
        from .contrastive import ContrastiveObjective

        return ContrastiveObjective(recipe.contrastive)
    if recipe.tokenizer is not None:
        from .tokenizer.objective import TokenizerObjective

        return TokenizerObjective(recipe.tokenizer)
    assert recipe.mllm is not None  # Recipe checks that exactly one section is given
    from .mllm import MllmObjective

    objective = MllmObjective(recipe.mllm, recipe.seed, recipe.data.max_length, recipe.init_from, weights)
    objective.examples = replace(objective.examples, splits_long_text=recipe.data.long_text == "split")
    return objective
