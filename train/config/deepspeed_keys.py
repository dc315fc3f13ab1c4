"""The recipe's ``run.deepspeed``: keys of DeepSpeed's configuration, and those that other keys set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...common.errors import shown

#: Keys of DeepSpeed that the trainer sets, by dotted name, and the recipe's key for each.
OWNED = {
    "train_batch_size": "data.micro_batch_size and run.gradient_accumulation_steps",
    "train_micro_batch_size_per_gpu": "data.micro_batch_size",
    "gradient_accumulation_steps": "run.gradient_accumulation_steps",
    "managed_gradient_accumulation": "run.gradient_accumulation_steps",
    "elasticity": "data.micro_batch_size and run.gradient_accumulation_steps",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "the section optimizer",
    "scheduler": "the section schedule",
    "zero_allow_untested_optimizer": "the section optimizer",
    "zero_force_ds_cpu_optimizer": "the section optimizer",
    "bf16": "run.precision",
    "bfloat16": "run.precision",
    "fp16": "run.precision",
    "amp": "run.precision",
    "torch_autocast": "run.precision",
    "zero_optimization.stage": "run.zero_stage",
    "zero_optimization.offload_optimizer.device": "run.offload",
    "zero_optimization.offload_param.device": "run.offload",
    "zero_optimization.cpu_offload": "run.offload",
    "zero_optimization.cpu_offload_param": "run.offload",
    "zero_optimization.compute_grad_norm": "nothing: broken steps are recognised by the norm",
    "checkpoint": "run.save_every and run.keep_checkpoints",
    "sequence_parallel_size": "nothing: processes share the data only",
    "tensor_parallel": "nothing: processes share the data only",
    "expert_parallel": "nothing: processes share the data only",
}
#: Keys that change the layout of checkpoints, so that a resumed run must keep them.
LAYOUT = (
    "zero_optimization.round_robin_gradients",
    "zero_optimization.parameter_alignment",
    "zero_optimization.sub_group_size",
    "zero_optimization.zero_hpz_partition_size",
    "zero_optimization.mics_shard_size",
)


def deepspeed_problems(given: Any) -> Iterator[str]:
    """What is wrong with ``run.deepspeed``, one line each."""
    if not isinstance(given, Mapping):
        yield f"run.deepspeed is {shown(given)}; give keys of DeepSpeed's configuration by name"
        return
    for key in _keys(given):
        if key in OWNED:
            yield f"run.deepspeed.{key} is set by the trainer; its key in a recipe is {OWNED[key]}"


def merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `given`; mappings in both are merged at every depth."""
    result = dict(base)
    for key, value in given.items():
        inner = result.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = merged(inner, value) if both else value  # type: ignore[arg-type]
    return result


def _keys(given: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted name of every key at every depth."""
    for key, value in given.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{key}.")
