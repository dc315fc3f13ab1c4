"""The weights of a new model on their way into the processes' memory, one parameter at a time.

Process 0 builds the model with its values, which may still be in mapped files; the others build its shapes
only, on the meta device. Every parameter is converted, moved to its device and, at ZeRO stage 3, partitioned
before the next one is read, so that no process holds a second copy of the model, and at stage 3 none a
complete one. DeepSpeed broadcasts the values of process 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .deepspeed import partition
from .distributed import World


def place(module: nn.Module, world: World, dtype: torch.dtype | None, config: dict[str, Any]) -> None:
    """Move a module to the device on which DeepSpeed is to train it; every rank calls this.

    Args:
        dtype: of the floating parameters; None keeps theirs.
        config: of DeepSpeed; at stage 3 the parameters are partitioned. Other ranks than 0 have complete
            parameters only once `deepspeed.initialize` has broadcast them.
    """
    shapes = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
    if (
        len(set(world.gather(crc32(repr(shapes).encode())))) > 1
    ):  # would send values to other parameters, or hang
        raise RuntimeError("the processes have built different models")
    parameters = _materialised(module, world.device, dtype)
    if config["zero_optimization"]["stage"] == 3:
        partition(parameters, config)
    else:
        for _ in parameters:
            pass
    _place_buffers(module, world)


def _place_buffers(module: nn.Module, world: World) -> None:
    """Move the buffers, and broadcast those that other ranks lack: rows of weights that adapters keep."""
    owners = {
        f"{prefix}.{name}": (owner, name)
        for prefix, owner in module.named_modules()
        for name, _ in owner.named_buffers(recurse=False)
    }
    lacking = [key for key, (owner, name) in owners.items() if getattr(owner, name).is_meta]
    for key in sorted(set().union(*world.gather(lacking))):
        owner, name = owners[key]
        buffer = getattr(owner, name)
        placed = torch.empty_like(buffer, device=world.device) if buffer.is_meta else buffer.to(world.device)
        if world.size > 1:
            dist.broadcast(placed, 0)
        owner._buffers[name] = placed
    module.to(world.device)


@torch.no_grad()
def fill(module: nn.Module, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Load complete weights on the CPU, one at a time; parameters become `dtype`, buffers keep theirs.

    Errors:
        RuntimeError for other names or shapes than the module's.
    """
    targets = module.state_dict(keep_vars=True)
    if targets.keys() != weights.keys():
        raise RuntimeError(f"other weights: {sorted(targets.keys() ^ weights.keys())[:3]}")
    for name, target in targets.items():
        values = weights[name]
        if values.shape != target.shape:
            raise RuntimeError(f"{name} is {tuple(values.shape)}, not {tuple(target.shape)}")
        if isinstance(target, nn.Parameter):
            give_storage(target, values, torch.device("cpu"), dtype)
        else:
            target.copy_(values)


@torch.no_grad()
def give_storage(
    parameter: nn.Parameter, values: Tensor | None, device: torch.device, dtype: torch.dtype
) -> None:
    """Give a parameter its own storage with these values; None leaves it uninitialised."""
    storage = torch.empty_like(parameter, dtype=dtype, device=device, requires_grad=False)
    if values is not None:
        storage.copy_(values)
    if not parameter.is_meta:
        parameter.data = storage
        return
    # The parameter must stay the same object, but torch does not assign such data to it.
    attributes = dict(vars(parameter))
    torch.utils.swap_tensors(parameter, nn.Parameter(storage, parameter.requires_grad))
    vars(parameter).update(attributes)


def _materialised(
    module: nn.Module, device: torch.device, dtype: torch.dtype | None
) -> Iterator[nn.Parameter]:
    """Every parameter, with its own storage on `device` when it is yielded."""
    for parameter in module.parameters():
        wanted = parameter.dtype if dtype is None or not parameter.is_floating_point() else dtype
        give_storage(parameter, None if parameter.is_meta else parameter, device, wanted)
        yield parameter
