"""What DeepSpeed's files of a checkpoint hold, as whole tensors by parameter name, whatever the ZeRO stage.

The files are mapped, not read: a tensor is in memory only once it is asked for. Nothing in them is executed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from math import ceil, prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UserError, first_line
from .accelerator import name_accelerator

#: Key of a parameter's fp32 master weights beside those of its optimizer state.
MASTER = "fp32"
#: Keys with as many numbers as the parameter, divided as it is: AdamW's moments. Muon's momentum is not.
DIVIDED = (MASTER, "exp_avg", "exp_avg_sq")
_RANK = re.compile(r"zero_pp_rank_(\d+)_")


class UnreadableFile(UserError):
    """A file that is not one of a checkpoint; ``reason`` is in a few words."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file} cannot be read as a file of a checkpoint: {reason}")
        self.reason = reason


class OptimizerState:
    """Every trained parameter's fp32 master weights and optimizer state, of ZeRO stage 1, 2 or 3.

    A key of a parameter is either in `DIVIDED`, with pieces in all ranks' files, or in ``common``, one number
    for all of it (the step); names of tensors that are neither are in ``others``.
    """

    def __init__(self, folder: Path, stage: int) -> None:
        self._pieces: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self.common: dict[str, dict[str, Any]] = defaultdict(dict)
        self.others: set[str] = set()
        self.shapes = {
            name: shape
            for group in _model_state(folder, stage)["param_shapes"]
            for name, shape in group.items()
        }
        files = _by_rank(folder, "*_optim_states.pt")
        for file in files:
            saved = load_file(file)["optimizer_state_dict"]
            parts = (
                _divided_by_group(saved) if stage < 3 else _divided_by_parameter(saved, folder, len(files))
            )
            for name, flat, start, length in parts:
                self._take(name, flat, start, length)

    def _take(self, name: str, flat: dict[str, Any], start: int, length: int) -> None:
        for key, value in flat.items():
            if key in DIVIDED:
                self._pieces[name][key].append(value.narrow(0, start, length))
            elif isinstance(value, Tensor) and value.dim():
                self.others.add(key)
            else:
                self.common[name][key] = value

    def divided_keys(self, name: str) -> list[str]:
        return list(self._pieces[name])

    def whole(self, name: str, key: str) -> Tensor:
        """All numbers of a divided key, flat, in fp32."""
        return torch.cat(self._pieces[name][key])[: prod(self.shapes[name])]


def saved_weights(folder: Path, stage: int) -> dict[str, Tensor]:
    """The state dict of the trained module: parameters, frozen ones too, and buffers.

    Up to stage 2 as they were used; at stage 3 trained parameters are the fp32 masters, of which those used
    are the rounded copies.
    """
    state = _model_state(folder, stage)
    if stage < 3:
        return state["module"]
    weights = {name: state["module"][name] for name in state["buffer_names"]}
    fragments = [
        load_file(file)["frozen_param_fragments"] or {} for file in _by_rank(folder, "*_model_states.pt")
    ]
    for name, shape in (state["frozen_param_shapes"] or {}).items():
        whole = torch.cat([fragment[name].flatten() for fragment in fragments])
        weights[name] = whole[: prod(shape)].view(shape)
    trained = OptimizerState(folder, stage)
    for name, shape in trained.shapes.items():
        weights[name] = trained.whole(name, MASTER).view(shape)
    for name, other in state["shared_params"].items():
        if other in weights:
            weights[name] = weights[other]
    return weights


def load_file(file: Path, mapped: bool = True) -> Any:
    """One of DeepSpeed's files, on the CPU; with `mapped` its tensors are read once they are asked for.

    Errors:
        UnreadableFile for one that is torn, or holds anything but tensors and DeepSpeed's own few classes.
    """
    name_accelerator()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    try:
        with torch.serialization.safe_globals(
            [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
        ):
            return torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except UnpicklingError:
        reason = "it holds Python objects, which are never loaded"
    except Exception as error:  # foreign bytes: torch fails at them in many ways
        reason = first_line(error)
    raise UnreadableFile(file, reason)


def _model_state(folder: Path, stage: int) -> dict[str, Any]:
    return load_file(folder / f"{'zero_pp_rank_0_' if stage == 3 else ''}mp_rank_00_model_states.pt")


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    files = {int(match[1]): file for file in folder.glob(pattern) if (match := _RANK.search(file.name))}
    if sorted(files) != list(range(len(files))) or not files:
        raise UserError(f"{folder} has files {pattern} of the ranks {sorted(files)} only; it is not complete")
    return [files[rank] for rank in sorted(files)]


def _divided_by_group(saved: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], int, int]]:
    """One rank's pieces at stage 1 and 2: each group of parameters is one vector, cut at equal distances."""
    for number, places in enumerate(saved["param_slice_mappings"]):
        state = saved["base_optimizer_state"]["state"].get(number, {})
        flat = {MASTER: saved["single_partition_of_fp32_groups"][number], **state}
        for name, place in places.items():
            yield name, flat, place.start, place.numel


def _divided_by_parameter(
    saved: dict[str, Any], folder: Path, ranks: int
) -> Iterator[tuple[str, dict[str, Any], int, int]]:
    """One rank's pieces at stage 3: each parameter is cut by itself, the last piece padded."""
    for number, shapes in enumerate(_model_state(folder, 3)["param_shapes"]):
        state = saved["optimizer_state_dict"]["state"].get(number, {})
        flat, start = {MASTER: saved["fp32_flat_groups"][number], **state}, 0
        for name, shape in shapes.items():
            length = ceil(prod(shape) / ranks)
            yield name, flat, start, length
            start += length
