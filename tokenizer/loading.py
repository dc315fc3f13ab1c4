"""Loading a tokenizer strictly: a saved one, or a released research checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, SiglipConfig

from ..common.errors import UserError, first_line, shown
from ..common.loading.bounded_settings import most_layers
from ..common.loading.model_files import check_model_files
from ..common.loading.quiet import quiet, size_of
from ..common.loading.strict import check_loading_info, load_exactly, tokenizer_source
from ..common.loading.weight_files import HUB_OPTIONS, refuse_bigger, refuse_bigger_than, weight_files
from ..common.paths import user_path
from .configuration import DualTokenizerConfig
from .official import read_official

Model = TypeVar("Model", bound=PreTrainedModel)


def load_tokenizer(
    model_class: Callable[[DualTokenizerConfig], Any],
    load: Callable[..., Any],
    name: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Load a saved tokenizer with transformers' `load`, in fp32 unless `dtype` is given.

    Raises:
        UserError: not a tokenizer, or weights that are missing, unexpected or of another shape.
    """
    asked_info = kwargs.pop("output_loading_info", False)
    kwargs.setdefault("dtype", torch.float32)
    kwargs |= {"trust_remote_code": False, "use_safetensors": True}
    source = tokenizer_source(name)
    check_model_files(source, kwargs.get("subfolder"))
    if kwargs.get("config") is None:
        check_is_tokenizer(source, kwargs)
    hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
    files = weight_files(source, hub, "a tokenizer")
    if kwargs.get("config") is None:
        config = DualTokenizerConfig.from_pretrained(source, **hub)
        refuse_bigger(lambda: model_class(config), most_layers(config.to_dict()), files, source)
    try:
        with quiet(size_of(files.values())):
            model, info = load(source, *args, output_loading_info=True, **kwargs)
    except UserError:
        raise
    except (OSError, RuntimeError, ImportError, SafetensorError) as error:
        raise UserError(f"cannot load a tokenizer from {source!r}: {first_line(error)}") from error
    check_loading_info(info, source)
    return (model, info) if asked_info else model


def load_official(
    model_class: Callable[[DualTokenizerConfig], Model],
    checkpoint: str | os.PathLike[str],
    config: str | os.PathLike[str],
    backbone_config: str | os.PathLike[str] | SiglipConfig | None,
    causal: bool,
) -> Model:
    """Load a released research checkpoint with its config.json, in eval mode."""
    files = user_path(checkpoint, "checkpoint"), user_path(config, "config")
    settings, state = read_official(*files, backbone_config, causal)
    layers, numbers = most_layers(settings.to_dict()), sum(one.numel() for one in state.values())
    refuse_bigger_than(lambda: model_class(settings), layers, len(state), numbers, str(checkpoint))
    model = model_class(settings)
    load_exactly(model, state, f"weights in {str(checkpoint)!r} do not match the configuration")
    return model.eval()


def check_is_tokenizer(source: Any, options: Mapping[str, Any]) -> None:
    """Raise UserError unless `source`, a folder or hub id, has the config.json of a tokenizer."""
    hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    try:
        settings, _ = DualTokenizerConfig.get_config_dict(source, **hub)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(source)!r} is not a tokenizer; give a folder with config.json and model.safetensors, or "
            f"a hub id ({first_line(error)})"
        ) from None
    found = settings.get("model_type")
    if found is None:
        raise UserError(
            f"{str(source)!r} is not a tokenizer: no config.json; give the folder of a saved tokenizer"
        )
    if found != DualTokenizerConfig.model_type:
        hint = "; its tokenizer is in its folder 'visual_tokenizer'" if found == "dualtoken" else ""
        raise UserError(
            f"{str(source)!r} holds a model of type {shown(found)}, "
            f"not {DualTokenizerConfig.model_type!r}{hint}"
        )
