"""Strict loading and atomic saving of weights, with one-line errors."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import SiglipModel

from ..errors import UserError, first_line
from ..files import make_readable
from .model_files import check_model_files
from .model_source import NANO, model_source

TOKENIZER_FOLDER = "visual_tokenizer"


def loading_reason(error: Exception) -> str:
    """The reason in one line why untrusted files could not be loaded."""
    if "trust_remote_code" in str(error):
        return "it needs custom code, and no code of a model folder is run"
    if "Repo id must" in str(error):  # transformers takes any name that is not a folder for a hub id
        return "this folder does not exist, and the name is not a hub id"
    return first_line(error)


def tokenizer_source(source: str | os.PathLike[str]) -> str:
    """The folder or hub id of a tokenizer; "nano": the packaged one. Errors as in `model_source`."""
    found = model_source(source, "tokenizer")
    return str(Path(found) / TOKENIZER_FOLDER) if str(source) == NANO else found


def load_siglip(source: str | os.PathLike[str]) -> SiglipModel:
    """Load a SiglipModel from a folder or hub id; UserError if that fails."""
    check_model_files(source)
    try:
        return SiglipModel.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers reads untrusted files unchecked
        raise UserError(
            f"cannot load a SigLIP model from {str(source)!r}: {loading_reason(error)}"
        ) from error


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """load_state_dict with a UserError of one line, starting with `what`, for other keys or shapes."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{what}: {' '.join(str(error).split())[:400]}") from None


def check_loading_info(info: Mapping[str, Any], source: str) -> None:
    """Raise UserError if transformers' loading info has missing or unexpected weights."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys"):
        names = sorted(map(str, info[kind]))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}{more}")
    if problems:
        raise UserError(f"weights in {source!r} do not match its config.json: {'; '.join(problems)}")


def save_whole(save: Callable[[Path], object], folder: str | os.PathLike[str]) -> None:
    """Call `save` with a temporary folder, then rename its files into `folder`.

    Other files of `folder` stay; weights of an earlier save that were not written again are removed, so that
    several weight files never mix with a single one.
    """
    target = Path(folder)
    if target.is_file():
        raise UserError(f"cannot save to {str(target)!r}: it is a file; give a folder")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=target) as name:
        save(Path(name))
        written = sorted(Path(name).iterdir())
        stale = set(target.glob("model*.safetensors*")) - {target / file.name for file in written}
        for file in written:
            make_readable(file)
            os.replace(file, target / file.name)
        if written:  # processes other than the first write nothing, and must not remove anything
            for file in stale:
                file.unlink(missing_ok=True)


def load_tensors(path: Path) -> Mapping[str, Tensor]:
    """The state dict of a `.pt` (weights only) or `.safetensors` file."""
    if not path.is_file():
        raise UserError(f"checkpoint {str(path)!r} does not exist; give a .pt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise UserError(f"checkpoint {str(path)!r} cannot be read: {first_line(error)}") from None
    except Exception as error:  # pickle raises many types for refused or broken content
        raise UserError(
            f"checkpoint {str(path)!r} is not a file of plain weights: {type(error).__name__}"
        ) from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"checkpoint {str(path)!r} holds no state dict of tensors")
    return state
