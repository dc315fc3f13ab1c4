"""Optional packages: the extra that installs each, and the message for a missing one."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from .errors import UserError

#: (extra, distribution) of an optional package, by its import name.
OPTIONAL = {
    "accelerate": ("gpu", "accelerate"),
    "bitsandbytes": ("gpu", "bitsandbytes"),
    "datasets": ("train", "datasets"),
    "deepspeed": ("train", "deepspeed"),
    "flash_attn": ("gpu", "flash-attn"),
    "gguf": ("gguf", "gguf"),
    "liger_kernel": ("gpu", "liger-kernel"),
    "lmms_eval": ("lmms", "lmms-eval"),
    "lpips": ("train", "lpips"),
    "matplotlib": ("eval", "matplotlib"),
    "open_clip": ("train", "open_clip_torch"),
    "peft": ("train", "peft"),
    "pyarrow": ("eval", "pyarrow"),
    "tensorboard": ("train", "tensorboard"),
    "torch_fidelity": ("eval", "torch-fidelity"),
    "torchdata": ("train", "torchdata"),
    "torchmetrics": ("eval", "torchmetrics"),
    "vector_quantize_pytorch": ("bench", "vector-quantize-pytorch"),
}
_ROOT = Path(__file__).resolve().parent.parent


def missing_package(name: str) -> str:
    """The message for a missing package with the import name `name`, with the command that installs it."""
    extra, package = OPTIONAL.get(name, ("", name))
    is_clone = extra and (_ROOT / "setup.py").is_file()
    command = install_command(extra) if is_clone else f"pip install {package}"
    return f"the package {package} is needed and not installed: {command}"


def install_command(extra: str) -> str:
    """The command that installs this package with an extra ("": without), from the clone if this is one."""
    is_clone = (_ROOT / "setup.py").is_file()
    what = ("." if is_clone else "dualtoken") + (f"[{extra}]" if extra else "")
    return f"pip install '{what}'" + (f" in {_ROOT}" if is_clone else "")


def require_package(name: str) -> None:
    """Raise UserError if the package with the import name `name` is missing; it is not imported."""
    if importlib.util.find_spec(name) is None:
        raise UserError(missing_package(name))


def optional_package(name: str) -> ModuleType:
    """The module `name`. UserError with its extra if it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
            raise  # the package is installed, but one of its dependencies is not
        raise UserError(missing_package(name.split(".")[0])) from error
