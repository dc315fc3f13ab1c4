"""A warning before a run that would make a pretrained language model forget its language."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config.data import DataConfig
from ..config.recipe import Recipe
from ..objectives import Objective
from ..objectives.mllm import MllmObjective

Manifests = Mapping[str, Mapping[str, Any]]

#: Below this share of records without images a run is warned about.
LEAST_TEXT = 0.05


def text_share(data: DataConfig, manifests: Manifests) -> float:
    """The share of the mixture that comes from sources without any image."""
    weights = {name: source.weight for name, source in data.sources.items()}
    text = [name for name in weights if not any(one["images"] for one in manifests[name]["shards"])]
    return sum(weights[name] for name in text) / sum(weights.values())


def forgetting(recipe: Recipe, objective: Objective, manifests: Manifests) -> str | None:
    """What to warn about where a language model that can chat is fine-tuned without text, or None.

    A language model can chat if it brought a chat template. It is not fine-tuned where only other parts are
    trained, or where its rate is 0.
    """
    if not isinstance(objective, MllmObjective) or objective.processor.chat_format.is_own:
        return None
    rates, model = recipe.optimizer, objective.model.language_model
    if not rates.group_lr.get("llm", rates.lr) or not any(one.requires_grad for one in model.parameters()):
        return None
    share = text_share(recipe.data, manifests)
    if share >= LEAST_TEXT:
        return None
    return (
        f"text without images is {share:.0%} of data.sources; fine-tuning a language model without text data "
        "usually destroys its language. Add a text source with a share of about 0.3: conversations, or the "
        "model's own answers (dualtoken prepare replies)"
    )
