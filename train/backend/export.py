"""Export a checkpoint of any ZeRO stage to the model's public one-folder format, in one CPU process."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError

from ...common.errors import UserError, first_line, one_line, shown
from ...common.files import atomic_folder
from ...mllm.assembly.weights import Weights
from ..config.reading import parse_recipe
from ..config.recipe import Recipe, save_resolved
from ..objectives import Objective, build_objective
from .checkpoint import Checkpoints
from .checkpoint_files import (
    BEST,
    RECIPE,
    STATE,
    STEP_NAME,
    SavedState,
    damage,
    fault,
    is_checkpoint,
    read_extra,
)
from .distributed import World
from .placement import fill
from .resume import EARLIER, VOCABULARY_MULTIPLE, recipe_file, written_recipe
from .saved_state import saved_weights

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def find_checkpoint(path: Path, step: int | str | None = None) -> Path:
    """The folder of an intact checkpoint.

    Args:
        path: a run's output folder, or one checkpoint in it.
        step: of the checkpoint in a run; "best" is the one with the lowest loss, None the newest.

    Errors:
        UserError for a folder that is neither, a step without a checkpoint, or a damaged checkpoint.
    """
    if not (path / "checkpoints").is_dir():
        if not (path / STATE).is_file():
            raise UserError(
                f"{path} is neither the output folder of a run (with checkpoints/) nor a checkpoint (step-…)"
            )
        if step is not None:
            raise UserError(f"{path} is one checkpoint; --step chooses among those of a run's output folder")
        found = path
    else:
        checkpoints = Checkpoints(path / "checkpoints", World(), keep=1)
        steps, best = checkpoints.steps(), checkpoints.best()
        if step == "best" and best is None:
            raise UserError(f"{checkpoints.folder / BEST} names no intact checkpoint; give a step's number")
        wanted = best.step if best and step == "best" else step or (steps[-1] if steps else None)
        if wanted is None or not checkpoints.path(int(wanted)).is_dir():
            intact = f"there are {', '.join(map(str, steps))}" if steps else "none there is intact"
            raise UserError(f"{path} has no checkpoint of step {step or 'any'}; {intact}")
        found = checkpoints.path(int(wanted))
        if step is None:
            _warn_of_newer(checkpoints, found)
    wrong = fault(found) or damage(found)
    if wrong is not None:
        raise UserError(f"checkpoint {found} {wrong}; choose another one with --step")
    return found


def _warn_of_newer(checkpoints: Checkpoints, taken: Path) -> None:
    """Warn of damaged checkpoints that are newer than the selected one."""
    for folder in sorted(taken.parent.iterdir()):
        if STEP_NAME.fullmatch(folder.name) and folder.name > taken.name and is_checkpoint(folder):
            logger.warning(one_line(f"checkpoint {folder} {fault(folder)}; {taken.name} is used"))


def recipe_of(checkpoint: Path) -> Recipe:
    """The recipe of the run that wrote a checkpoint (stored in it, or in its run's folder)."""
    path = recipe_file(checkpoint)
    if path is None:
        raise UserError(f"{checkpoint} has no {RECIPE}, nor has its run; put the run's recipe there")
    written = written_recipe(checkpoint)  # refuses files that are harmful to parse
    section = (written or {}).get("mllm")
    padding = f"mllm.{VOCABULARY_MULTIPLE}"
    is_old = isinstance(section, dict) and VOCABULARY_MULTIPLE not in section
    return parse_recipe([str(path), *([f"--{padding}", str(EARLIER[padding])] if is_old else [])])


def export_checkpoint(
    checkpoint: Path, recipe: Recipe, output: Path, dtype: str | None = None, average: bool = False
) -> None:
    """Export the model of a checkpoint as its run does at the end; ``output`` is replaced.

    Args:
        dtype: "fp32" or "bf16"; None uses ``run.export_dtype``.
        average: export the averaged weights (``run.weight_average``) instead of the last ones.

    Errors:
        UserError if there are no averages, or the recipe builds another model than the trained one.
    """
    # Weights that adapters are made of are needed; all others come from the checkpoint.
    is_shape = recipe.mllm is not None and recipe.mllm.lora is None
    weights = Weights.ABSENT if is_shape else Weights.LOADED
    objective = build_objective(_without_auxiliary_networks(recipe), weights)
    try:
        _restore(objective, checkpoint, recipe, average)
    except UserError:
        raise
    except Exception as error:  # torch raises many types for foreign content
        raise UserError(
            f"{checkpoint} does not fit the model of its recipe, or is damaged: {first_line(error)}"
        ) from error
    _write(objective, recipe, output, dtype or recipe.run.export_dtype)


def export_trained(objective: Objective, checkpoint: Path, recipe: Recipe, output: Path) -> None:
    """Export the model at the end of its run, with its last checkpoint; ``output`` is replaced."""
    try:
        if recipe.run.zero_stage == 3:  # only the checkpoint's files hold complete weights
            export_checkpoint(checkpoint, recipe, output)
        else:
            _write(objective, recipe, output, recipe.run.export_dtype)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"Training is complete and saved in {checkpoint.name}, but the model could not be written to "
            f"{shown(str(output))} ({shown(first_line(error))}): make room and start the run again, which "
            "then only writes the model"
        ) from error


def _write(objective: Objective, recipe: Recipe, output: Path, dtype: str) -> None:
    """Write the model in its public format, atomically."""
    objective.eval()
    with atomic_folder(output) as temporary:
        objective.export(temporary, DTYPES[dtype])
        save_resolved(recipe, temporary / RECIPE)


def _without_auxiliary_networks(recipe: Recipe) -> Recipe:
    """The recipe without the networks for a tokenizer's losses, which would be downloaded."""
    if recipe.tokenizer is None:
        return recipe
    tokenizer = dataclasses.replace(recipe.tokenizer, perceptual_weight=0.0, adversarial=None)
    return dataclasses.replace(recipe, tokenizer=tokenizer)


def _restore(objective: Objective, checkpoint: Path, recipe: Recipe, average: bool) -> None:
    extra = read_extra(checkpoint)
    averages = extra.get("weight_average", {}).get("averages")
    if average and averages is None:
        raise UserError(f"{checkpoint} holds no averaged weights; the run had no run.weight_average")
    stage = SavedState.read(checkpoint).zero_stage
    weights = saved_weights(checkpoint, recipe.run.zero_stage if stage is None else stage)
    in_bf16 = recipe.run.precision == "bf16"  # the format in which the run computes
    if recipe.mllm is not None:
        fill(objective, weights, torch.bfloat16 if in_bf16 else torch.float32)
    else:
        (objective.bfloat16() if in_bf16 else objective).load_state_dict(dict(weights))
    if average:
        weights = dict(objective.named_parameters())
        with torch.no_grad():
            for name, value in averages.items():
                weights[name].copy_(value)
    objective.load_extra_state(extra.get("objective", {}))
