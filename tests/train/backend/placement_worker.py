"""Builds the engines of recipes as a run does, and compares their weights with the plainly built model.

Arguments: a folder with case-*.json, each the arguments of a recipe. Writes failures-RANK.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.zero import GatheredParameters

from dualtoken.train.backend.distributed import World, join_world, leave_world
from dualtoken.train.config.reading import parse_recipe
from dualtoken.train.config.recipe import Recipe
from dualtoken.train.objectives import build_objective
from dualtoken.train.trainer import initialise_engine, weights_at_start


def plain_weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of the model as built in one process, rounded as the run rounds it."""
    torch.manual_seed(recipe.seed)
    objective = build_objective(recipe)
    if recipe.run.precision == "bf16":
        for parameter in objective.parameters():
            parameter.data = parameter.data.bfloat16()
    return {**dict(objective.named_parameters()), **dict(objective.named_buffers())}


def difference(recipe: Recipe, world: World) -> str | None:
    """What differs between the weights of an engine and the plainly built ones."""
    torch.manual_seed(recipe.seed)
    objective = build_objective(recipe, weights_at_start(recipe, world))
    engine, _ = initialise_engine(recipe, world, objective)
    expected = plain_weights(recipe)
    found = {**dict(engine.module.named_parameters()), **dict(engine.module.named_buffers())}
    if found.keys() != expected.keys():
        return f"names {sorted(found.keys() ^ expected.keys())}"
    for name, tensor in found.items():
        with GatheredParameters([tensor], enabled=hasattr(tensor, "ds_id")):
            if tensor.dtype != expected[name].dtype or not torch.equal(tensor, expected[name]):
                return f"{name}: {tensor.dtype} {expected[name].dtype}"
            if tensor.requires_grad != expected[name].requires_grad:
                return f"{name} is trained: {tensor.requires_grad}"
    return None


def main(folder: Path) -> None:
    world = join_world(threads=1)
    wrong: dict[str, Any] = {}
    for path in sorted(folder.glob("case-*.json")):
        recipe = parse_recipe(json.loads(path.read_text()))
        wrong[path.stem] = difference(recipe, world)
    (folder / f"failures-{world.rank}.json").write_text(json.dumps(wrong))
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
