"""Optional packages, imported when a figure asks for them."""

from __future__ import annotations

import importlib
from types import ModuleType

from ...common.errors import UserError
from ...common.packages import missing_package


def optional_package(name: str) -> ModuleType:
    """The module `name`. UserError that names the extra which brings it, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
            raise  # the package is there, and something of its own is missing
        raise UserError(missing_package(name.split(".")[0])) from error
