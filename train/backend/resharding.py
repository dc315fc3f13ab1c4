"""Resuming on another number of processes, or at another ZeRO stage, than the checkpoint was written by.

DeepSpeed restores only what the same number of processes has written; its universal checkpoints need a
conversion beforehand, and at stage 3 lose the weight decay of all parameter groups but the first. Here every
rank cuts its own part out of the tensors of all files and hands it to DeepSpeed as if it had written it.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UserError
from .saved_state import MASTER, OptimizerState, load_file, saved_weights

Part = tuple[str, int, int]  # parameter's name, first number, count


def load_resharded(engine: Any, folder: Path, stage: int) -> None:
    """Restore the checkpoint in ``folder``, of ZeRO stage ``stage``, into an engine of stage 1, 2 or 3.

    Errors:
        UserError for a change from or to stage 0, and for an optimizer other than AdamW.
    """
    now = int(engine.zero_optimization_stage())
    if not stage or not now:
        raise UserError(
            f"{folder} was written with run.zero_stage {stage}, this run has {now}; stage 0 cannot be "
            "changed from or to another one: set it as it was, or give another output folder"
        )
    saved = OptimizerState(folder, stage)
    if saved.others:
        raise UserError(
            f"{folder}: the optimizer's {', '.join(sorted(saved.others))} cannot be divided anew, only what "
            "AdamW keeps; start as many processes as then, with the same run.zero_stage"
        )
    _load_module(engine, saved_weights(folder, stage))
    (_load_stage_3 if now == 3 else _load_stage_1_or_2)(engine, saved)
    _load_counters(engine, load_file(next(iter(sorted(folder.glob("*mp_rank_00_model_states.pt"))))))


def _load_module(engine: Any, weights: dict[str, Tensor]) -> None:
    """Parameters and buffers; where parameters are divided (stage 3) they are gathered for it."""
    partitioned = engine.zero_optimization_partition_weights()
    engine.load_module_state_dict({"module": weights}, fetch_z3_params=partitioned)


def _load_stage_1_or_2(engine: Any, saved: OptimizerState) -> None:
    optimizer = engine.optimizer
    own = optimizer.state_dict()  # in the layout of this run; the settings of its groups stay
    masters, states = [], {}
    for number, (parameters, flat) in enumerate(
        zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)
    ):
        pieces = []
        for parameter in parameters:
            place = parameter._hp_mapping
            if place is not None:  # some of it is this rank's
                address, within = place.get_hp_fragment_address(), place.lp_fragment_address
                part = (engine.param_names[parameter], within.start, within.numel)
                pieces.append((address.start, part))
        master, states[number] = _cut(saved, pieces, flat)
        masters.append(master)
    own["single_partition_of_fp32_groups"] = masters
    own["base_optimizer_state"]["state"] = states
    rank = torch.distributed.get_rank(group=optimizer.dp_process_group)
    optimizer.load_state_dict([own] * (rank + 1), load_from_fp32_weights=True)
    optimizer.update_lp_params()


def _load_stage_3(engine: Any, saved: OptimizerState) -> None:
    optimizer = engine.optimizer
    own = optimizer.state_dict()
    rank = torch.distributed.get_rank(group=optimizer.dp_process_group)
    ranks = torch.distributed.get_world_size(group=optimizer.dp_process_group)
    masters, states = [], {}
    for number, (parameters, flat) in enumerate(
        zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True)
    ):
        pieces, start = [], 0
        for parameter in parameters:
            share = ceil(parameter.ds_numel / ranks)
            mine = max(0, min(share, parameter.ds_numel - rank * share))
            pieces.append((start, (engine.param_names[parameter], rank * share, mine)))
            start += share
        master, states[number] = _cut(saved, pieces, flat)
        masters.append(master)
    own["fp32_flat_groups"] = masters
    own["optimizer_state_dict"]["state"] = states
    optimizer.load_state_dict([own] * (rank + 1))


def _cut(
    saved: OptimizerState, pieces: list[tuple[int, Part]], flat: Tensor
) -> tuple[Tensor, dict[str, Any]]:
    """This rank's vector of master weights for one group of parameters, and its optimizer state.

    pieces: where in the vector which part of which parameter goes; the rest is padding.
    """
    state: dict[str, Any] = {}
    for start, (name, first, count) in pieces:
        for key in saved.divided_keys(name):
            vector = state.setdefault(key, torch.zeros(flat.shape, dtype=torch.float32))
            vector[start : start + count] = saved.whole(name, key)[first : first + count]
        # Each group needs a step counter of its own: one shared by two would advance twice.
        state |= {key: _copy(value) for key, value in saved.common[name].items()}
    master = state.pop(MASTER, torch.zeros(flat.shape, dtype=torch.float32))
    return master, state


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _load_counters(engine: Any, state: dict[str, Any]) -> None:
    """Steps done, and the schedule with the learning rate that it had come to."""
    engine.global_steps = state["global_steps"]
    engine.global_samples = state["global_samples"]
    engine.skipped_steps = state["skipped_steps"]
    scheduler = engine.lr_scheduler
    scheduler.load_state_dict(state["lr_scheduler"])
    for group, rate in zip(engine.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
