"""Lazy registration of our classes with transformers' Auto classes."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from ..lazy import after_import, lazy_class

AUTO = "transformers.models.auto"
CONFIGS = f"{AUTO}.configuration_auto:CONFIG_MAPPING"
MAPPINGS = {
    "AutoModel": f"{AUTO}.modeling_auto:MODEL_MAPPING",
    "AutoModelForImageTextToText": f"{AUTO}.modeling_auto:MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
    "AutoModelForMultimodalLM": f"{AUTO}.modeling_auto:MODEL_FOR_MULTIMODAL_LM_MAPPING",
    "AutoProcessor": f"{AUTO}.processing_auto:PROCESSOR_MAPPING",
    "AutoImageProcessor": f"{AUTO}.image_processing_auto:IMAGE_PROCESSOR_MAPPING",
}


def register(model_type: str, config: str, **classes: str) -> None:
    """Register a configuration with AutoConfig, and each class with the Auto class of its keyword.

    Configuration and classes are named as "module:Name". The Auto classes get stand-ins, which import a class
    at its first use, and the class itself once it is imported. Nothing is imported here, nor during the
    imports of transformers, whose modules import each other in circles.
    """
    any_config = lazy_class(*config.split(":"), model_type=model_type)
    _when([CONFIGS], lambda: _add(CONFIGS, model_type, any_config))
    _when([CONFIGS, config], lambda: _add(CONFIGS, model_type, _found(config)))
    for auto, name in classes.items():
        mapping, stand_in = MAPPINGS[auto], lazy_class(*name.split(":"))
        # Processors are also looked up by name, before there is a configuration.
        _when([mapping], partial(_add, mapping, any_config, stand_in))
        _when([mapping, config], partial(_add_found, mapping, config, stand_in))
        _when([mapping, config, name], partial(_add_found, mapping, config, name))


def _when(names: list[str], action: Any) -> None:
    after_import([_module(name) for name in names], action)


def _add_found(mapping: str, config: str, value: Any) -> None:
    _add(mapping, _found(config), _found(value) if isinstance(value, str) else value)


def _add(mapping: str, key: Any, value: Any) -> None:
    if mapping == MAPPINGS["AutoImageProcessor"]:
        value = {"pil": value, "torchvision": value}  # one class for both: it needs Pillow only
    # exist_ok: a test runner may import the package a second time under another name.
    _found(mapping).register(key, value, exist_ok=True)


def _found(name: str) -> Any:
    return getattr(sys.modules[_module(name)], name.partition(":")[2])


def _module(name: str) -> str:
    return name.partition(":")[0]
