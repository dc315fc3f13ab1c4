"""Complete tensors by parameter name from DeepSpeed's checkpoint files, at every ZeRO stage.

The files are memory-mapped: a tensor is read only when it is used. Nothing in them is executed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UserError, first_line
from .deepspeed import (
    MASTER,
    MODEL_FILES,
    OPTIMIZER_FILES,
    classes_in_files,
    frozen_weights,
    model_file,
    optimizer_pieces,
    trained_shapes,
)

#: Keys of tensors that are partitioned like the parameter: AdamW's moments. Muon's momentum is not.
DIVIDED = (MASTER, "exp_avg", "exp_avg_sq")
_RANK = re.compile(r"zero_pp_rank_(\d+)_")


class UnreadableFile(UserError):
    """A file that is not a valid file of a checkpoint; ``reason`` is a short phrase."""

    def __init__(self, file: Path, reason: str) -> None:
        super().__init__(f"{file} cannot be read as a file of a checkpoint: {reason}")
        self.reason = reason


class OptimizerState:
    """Every trained parameter's fp32 master weights and optimizer state, of ZeRO stage 1, 2 or 3.

    A parameter's keys are either in `DIVIDED`, with pieces in the files of all ranks, or in ``common``, with
    one number for the parameter (the step). ``others`` has the names of tensors that are neither.
    """

    def __init__(self, folder: Path, stage: int) -> None:
        self._pieces: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
        self.common: dict[str, dict[str, Any]] = defaultdict(dict)
        self.others: set[str] = set()
        groups = trained_shapes(load_file(model_file(folder, stage)))
        self.shapes = {name: shape for group in groups for name, shape in group.items()}
        files = _by_rank(folder, OPTIMIZER_FILES)
        for file in files:
            for name, vectors, start, length in optimizer_pieces(load_file(file), stage, groups, len(files)):
                self._take(name, vectors, start, length)

    def _take(self, name: str, vectors: dict[str, Any], start: int, length: int) -> None:
        for key, value in vectors.items():
            if key in DIVIDED:
                self._pieces[name][key].append(value.narrow(0, start, length))
            elif isinstance(value, Tensor) and value.dim():
                self.others.add(key)
            else:
                self.common[name][key] = value

    def divided_keys(self, name: str) -> list[str]:
        return list(self._pieces[name])

    def complete(self, name: str, key: str) -> Tensor:
        """The complete tensor of a divided key, flat, in fp32."""
        return self.part(name, key, 0, prod(self.shapes[name]))

    def part(self, name: str, key: str, first: int, count: int) -> Tensor:
        """`count` numbers of it from index `first` on; no others are read."""
        found, start = [torch.empty(0)], 0
        for piece in self._pieces[name][key]:
            low, high = max(first - start, 0), min(first + count - start, len(piece))
            if low < high:
                found.append(piece[low:high])
            start += len(piece)
        return torch.cat(found)


class SavedWeights(Mapping[str, Tensor]):
    """Tensors by name, each read from a checkpoint's files, and made whole, when it is taken."""

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Tensor:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def saved_weights(folder: Path, stage: int) -> Mapping[str, Tensor]:
    """The state dict of the trained module: trained and frozen parameters, and buffers.

    At stage 3 trained parameters are the fp32 master weights; at lower stages they have the run's dtype.
    """
    state = load_file(model_file(folder, stage))
    if stage < 3:
        weights: dict[str, Tensor] = state["module"]
        return weights
    buffers: dict[str, Tensor] = state["module"]
    readers: dict[str, Callable[[], Tensor]] = {
        name: partial(buffers.__getitem__, name) for name in state["buffer_names"]
    }
    readers |= frozen_weights([load_file(file) for file in _by_rank(folder, MODEL_FILES)])
    trained = OptimizerState(folder, stage)
    for name, shape in trained.shapes.items():
        readers[name] = partial(_shaped, trained, name, shape)
    for name, other in state["shared_params"].items():
        if other in readers:
            readers[name] = readers[other]
    return SavedWeights(readers)


def _shaped(trained: OptimizerState, name: str, shape: torch.Size) -> Tensor:
    return trained.complete(name, MASTER).view(shape)


def load_file(file: Path, mapped: bool = True) -> Any:
    """Load one of DeepSpeed's files on the CPU; with `mapped` its tensors are read when they are used.

    Errors:
        UnreadableFile for one that is torn, or holds objects other than tensors and DeepSpeed's few classes.
    """
    try:
        with torch.serialization.safe_globals(classes_in_files()):
            return torch.load(file, map_location="cpu", mmap=mapped, weights_only=True)
    except UnpicklingError:
        reason = "it holds Python objects, which are never loaded"
    except Exception as error:  # torch raises many types for foreign bytes
        reason = first_line(error)
    raise UnreadableFile(file, reason)


def _by_rank(folder: Path, pattern: str) -> list[Path]:
    files = {int(match[1]): file for file in folder.glob(pattern) if (match := _RANK.search(file.name))}
    if sorted(files) != list(range(len(files))) or not files:
        raise UserError(f"{folder} has files {pattern} of the ranks {sorted(files)} only; it is not complete")
    return [files[rank] for rank in sorted(files)]
