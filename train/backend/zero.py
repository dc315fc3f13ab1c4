"""The DeepSpeed configuration of a recipe; all values with surprising defaults are set explicitly."""

from __future__ import annotations

from typing import Any

import torch

from ..config.recipe import Recipe
from ..config.run import RunConfig


def deepspeed_config(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON configuration for a recipe."""
    run, micro = recipe.run, recipe.data.micro_batch_size
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": run.gradient_accumulation_steps,
        "train_batch_size": micro * run.gradient_accumulation_steps * world_size,
        "gradient_clipping": recipe.optimizer.gradient_clipping,  # DeepSpeed's default is 1.0, not off
        "zero_optimization": _zero(run),
        "zero_allow_untested_optimizer": True,  # its name for torch's AdamW
        # Its CPU optimizer would have to be compiled by the user; torch's fused AdamW runs on CPUs too.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": run.precision == "bf16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _zero(run: RunConfig) -> dict[str, Any]:
    on_cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": run.zero_stage}
    if run.offload != "none":
        zero["offload_optimizer"] = on_cpu
    if run.offload == "all":
        zero["offload_param"] = on_cpu
    return zero
