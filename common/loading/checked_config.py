"""A configuration with strict reading of an untrusted config.json."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UserError, first_line, shown
from .bounded_settings import check_settings
from .model_files import check_model_files
from .model_source import NANO, model_source


class CheckedConfig(PreTrainedConfig):
    """Reads a config.json so that every mistake in it is a UserError, and takes little memory and time."""

    #: The folder inside the packaged model that has this config.json.
    packaged_folder = ""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration from a file's settings; UserError for invalid ones."""
        if not isinstance(config_dict, dict):
            raise UserError("config.json does not hold an object")
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise UserError(f"config.json is of model type {shown(found)}, not {cls.model_type!r}")
        check_settings(config_dict, "config.json")
        try:
            return super().from_dict(config_dict, **kwargs)
        except UserError:
            raise
        except Exception as error:  # a hundred model types read their settings unchecked
            raise UserError(
                f"config.json is not a {cls.model_type} configuration: {first_line(error)}"
            ) from error

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The unchecked settings of a folder, a hub id or "nano"."""
        source = pretrained_model_name_or_path
        if not isinstance(source, str | os.PathLike):
            raise UserError(f"the source of a configuration is {shown(source)}; give a folder or a hub id")
        if str(source) == NANO:
            source = os.path.join(model_source(source), cls.packaged_folder)
        check_model_files(source, kwargs.get("subfolder"))
        try:
            found, rest = super().get_config_dict(source, **kwargs)
        except OSError as error:
            if not os.path.isdir(source):  # a hub id: transformers has the best message
                raise
            raise UserError(f"config.json of {source} cannot be read: {first_line(error)}") from error
        except (RecursionError, AttributeError, TypeError) as error:  # nested too deep, or not an object
            raise UserError(f"config.json of {source} cannot be read: {first_line(error)}") from error
        if not isinstance(found, dict):
            raise UserError(f"config.json of {source} holds {shown(found)}; expected a JSON object")
        return found, rest
