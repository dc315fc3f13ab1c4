"""Whether a folder or hub id holds a visual tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.errors import UserError, first_line, shown
from ..common.loading.weight_files import HUB_OPTIONS
from .configuration import DualTokenizerConfig


def check_is_tokenizer(source: Any, options: Mapping[str, Any]) -> None:
    """UserError unless `source`, a folder or hub id, has the config.json of a tokenizer."""
    hub = {key: options[key] for key in HUB_OPTIONS if key in options}
    try:
        settings, _ = DualTokenizerConfig.get_config_dict(source, **hub)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{str(source)!r} is no tokenizer; give a folder with config.json and model.safetensors, or "
            f"a hub id ({first_line(error)})"
        ) from None
    found = settings.get("model_type")
    if found is None:
        raise UserError(
            f"{str(source)!r} is no tokenizer: no config.json; give the folder of a saved tokenizer"
        )
    if found != DualTokenizerConfig.model_type:
        hint = "; its tokenizer is in its folder 'visual_tokenizer'" if found == "dualtoken" else ""
        raise UserError(
            f"{str(source)!r} holds a model of type {shown(found)}, "
            f"not {DualTokenizerConfig.model_type!r}{hint}"
        )
