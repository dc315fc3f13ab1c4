"""The DeepSpeed configuration of a recipe; all values with surprising defaults are set explicitly."""

from __future__ import annotations

from typing import Any

import torch

from ..config.deepspeed_keys import merged
from ..config.recipe import Recipe
from ..config.run import RunConfig


def deepspeed_config(recipe: Recipe, world_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON configuration for a recipe, with the recipe's ``run.deepspeed`` merged into it."""
    run, micro = recipe.run, recipe.data.micro_batch_size
    config = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": run.gradient_accumulation_steps,
        "train_batch_size": micro * run.gradient_accumulation_steps * world_size,
        "gradient_clipping": recipe.optimizer.gradient_clipping,  # DeepSpeed's default is 1.0, not off
        "zero_optimization": _zero(run, world_size),
        "zero_allow_untested_optimizer": True,  # its name for torch's AdamW
        # Its CPU optimizer would have to be compiled by the user; torch's fused AdamW runs on CPUs too.
        "zero_force_ds_cpu_optimizer": False,
        **_precision(run),
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return merged(config, run.deepspeed)


def _precision(run: RunConfig) -> dict[str, Any]:
    if run.precision == "bf16":
        # By default DeepSpeed sums gradients over micro-batches and processes in bf16, which drops a summand
        # below 1/256 of the sum so far.
        sums = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
        return {"bf16": {"enabled": True}, **sums}
    return {
        "bf16": {"enabled": False},
        # On CUDA the engine disables every other autocast in its forward pass.
        "torch_autocast": {
            "enabled": run.precision == "bf16_autocast",
            "dtype": "bfloat16",
            # Gradients of these modules are reduced in bf16; by default all linear layers.
            "lower_precision_safe_modules": [],
        },
    }


def _zero(run: RunConfig, world_size: int) -> dict[str, Any]:
    on_cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {"stage": run.zero_stage}
    if run.zero_stage:
        # DeepSpeed's default at stage 3 only; it takes a second bucket.
        zero["overlap_comm"] = world_size > 1 or run.zero_stage == 3
    if run.offload != "none":
        zero["offload_optimizer"] = on_cpu
    if run.offload == "all":
        zero["offload_param"] = on_cpu
    return zero
