"""The safetensors files of a saved model and their sizes, from their headers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ..errors import UserError, first_line, shown
from ..json_files import read_json_object, take
from ..paths import is_plain_name

HUB_OPTIONS = ("cache_dir", "revision", "token", "subfolder", "local_files_only", "force_download")
#: Limit of a model relative to its files: tied or converted weights, small computed tables.
LARGEST_FACTOR, SLACK = 2, 50_000_000


def weight_files(source: str, hub_options: Mapping[str, Any], what: str) -> dict[str, Path]:
    """The safetensors file of every tensor of a folder or hub id, in one file or several.

    what: the kind of model, for the message.

    Errors:
        UserError for missing or unreadable files, and an index that names files outside the folder.
    """
    try:
        index = _find(source, SAFE_WEIGHTS_INDEX_NAME, hub_options)
        single = _find(source, SAFE_WEIGHTS_NAME, hub_options)
        if single is not None:
            with safe_open(single, "pt") as file:
                return dict.fromkeys(file.keys(), single)
        if index is None:
            lacks = (
                f"it has no file {SAFE_WEIGHTS_NAME}"
                if Path(source).is_dir()
                else f"{SAFE_WEIGHTS_NAME} was not found on the hub or in its cache (offline?)"
            )
            raise UserError(f"cannot load {what} from {source}: {lacks}")
        return _indexed(source, index, hub_options)
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot load {what} from {source}: {first_line(error)}") from error


def refuse_bigger(make: Callable[[], nn.Module], layers: int, files: Mapping[str, Path], source: str) -> None:
    """Raise UserError if a configuration's model is bigger than the weights in `files`; see below."""
    refuse_bigger_than(make, layers, len(files), _stored_numbers(files), source)


def refuse_bigger_than(
    make: Callable[[], nn.Module], layers: int, tensors: int, stored: int, source: str
) -> None:
    """Raise UserError if a configuration's model is bigger than its weights, before it is built.

    make: makes the model; called once, on the meta device, which takes no memory.
    layers: the greatest `num_layers` of the configuration; each layer has at least one tensor.
    tensors, stored: the weights' number of tensors and of values.
    """
    if layers > tensors:
        raise UserError(
            f"{source}: config.json asks for {layers} layers, but the weights are {tensors} tensors; they "
            "do not belong together"
        )
    with torch.device("meta"):
        model = make()
    wanted = sum({id(one): one.numel() for one in (*model.parameters(), *model.buffers())}.values())
    if wanted > LARGEST_FACTOR * stored + SLACK:
        raise UserError(
            f"{source}: config.json asks for {wanted:,} numbers, but the weights hold {stored:,}; they do "
            "not belong together"
        )


def _stored_numbers(files: Mapping[str, Path]) -> int:
    """The number of values in the files, from their headers."""
    total = 0
    for path in set(files.values()):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _indexed(source: str, index: Path, hub_options: Mapping[str, Any]) -> dict[str, Path]:
    weight_map = take(read_json_object(index), "weight_map", dict, index)
    files: dict[str, Path] = {}
    for name in dict.fromkeys(map(_weight_file_name, weight_map.values())):
        path = _find(source, name, hub_options)
        if path is None:
            raise UserError(
                f"cannot load {source}: it lacks the file {shown(name)}, which {index.name} names"
            )
        files[name] = path
    return {str(tensor): files[name] for tensor, name in weight_map.items()}


def _weight_file_name(name: Any) -> str:
    if not is_plain_name(name) or not name.endswith(".safetensors"):
        raise UserError(f"the weights' index names {shown(name)}; expected a .safetensors file in its folder")
    return str(name)


def _find(source: str, name: str, hub_options: Mapping[str, Any]) -> Path | None:
    options = {key: value for key, value in hub_options.items() if value is not None}
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **options)
    return None if found is None else Path(found)
