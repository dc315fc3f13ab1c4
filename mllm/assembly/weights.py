"""Where the weights of a model are while it is built: in memory, in their files, or in another process."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from typing import Any
from unittest.mock import patch

import torch
from torch import nn


class Weights(Enum):
    """The weights of a model that is built.

    LOADED: all in this process, in fp32.
    MAPPED: saved ones stay in their safetensors files, memory-mapped and in the files' number format, until
        they are used; new ones are in fp32. Whoever computes with the model converts them first.
    ABSENT: shapes only, on the meta device, because another process has the values; buffers are complete.
    """

    LOADED = "loaded"
    MAPPED = "mapped"
    ABSENT = "absent"

    @property
    def dtype(self) -> Any:
        """`dtype` of transformers' `from_pretrained`."""
        return torch.float32 if self is Weights.LOADED else "auto"

    def building(self) -> AbstractContextManager[None]:
        """A context in which new modules are built."""
        return _parameters_on_meta() if self is Weights.ABSENT else nullcontext()

    def of_saved(self, model: nn.Module) -> None:
        """Make a model that `from_pretrained` has mapped what this asks for, in place."""
        if self is Weights.ABSENT:
            _drop_values(model)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within the context every new parameter is on the meta device; buffers are not."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None:  # a tied one is on it already, and must stay the same object
            module._parameters[name] = _on_meta(param)

    with patch.object(nn.Module, "register_parameter", register_on_meta):
        yield


def _drop_values(model: nn.Module) -> None:
    """Move all parameters to the meta device; tied ones stay tied."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in moved:
                    moved[parameter] = _on_meta(parameter)
                module._parameters[name] = moved[parameter]


def _on_meta(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.is_meta:
        return parameter
    moved = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    vars(moved).update(vars(parameter))
    return moved
