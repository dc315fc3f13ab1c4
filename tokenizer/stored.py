"""A saved tokenizer read from its files, tensor by tensor, without building the vision tower."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ..common.errors import UserError, first_line
from .configuration import DualTokenizerConfig
from .loading import check_is_tokenizer
from .modeling import DualTokenizer

CODEBOOKS = ("pixel_quantizer.codebooks.vectors", "semantic_quantizer.codebooks.vectors")


class StoredWeights(Mapping[str, Tensor]):
    """Tensors by name, each read from its file when asked for; floating ones in fp32, as the model loads
    them.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.files[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor.float() if tensor.is_floating_point() else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class StoredTokenizer:
    """Configuration and weights of a saved tokenizer: all that cached codes and their codebooks need."""

    source: str
    config: DualTokenizerConfig
    weights: StoredWeights
    hub_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **hub_options: Any) -> StoredTokenizer:
        """Open a folder or hub id; UserError for something that is no tokenizer or cannot be read."""
        check_is_tokenizer(source, hub_options)
        config = DualTokenizerConfig.from_pretrained(source, **hub_options)
        try:
            weights = StoredWeights(_weight_files(str(source), hub_options))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise UserError(f"cannot load a tokenizer from {str(source)!r}: {first_line(error)}") from error
        needed = CODEBOOKS[1:] if config.shared_quantizer else CODEBOOKS
        missing = [name for name in needed if name not in weights]
        if missing:
            raise UserError(
                f"weights in {str(source)!r} lack {missing}; give the folder of a saved tokenizer"
            )
        return cls(str(source), config, weights, hub_options)

    def state_dict(self) -> StoredWeights:
        """As the loaded model's `state_dict`, but lazily."""
        return self.weights

    def load(self) -> DualTokenizer:
        """The whole tokenizer."""
        return DualTokenizer.from_pretrained(self.source, **self.hub_options)


def _weight_files(source: str, hub_options: Mapping[str, Any]) -> dict[str, Path]:
    """The safetensors file of every tensor, in one file or several."""
    index = _find(source, SAFE_WEIGHTS_INDEX_NAME, hub_options)
    if index is not None:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: _find(source, name, hub_options) for name in set(places.values())}
        lost = sorted(name for name, path in files.items() if path is None)
        if lost:
            raise OSError(f"no file {lost[0]}")
        return {tensor: path for tensor, name in places.items() if (path := files[name]) is not None}
    single = _find(source, SAFE_WEIGHTS_NAME, hub_options)
    if single is None:
        raise OSError(f"no file {SAFE_WEIGHTS_NAME}")
    with safe_open(single, "pt") as file:
        return dict.fromkeys(file.keys(), single)


def _find(source: str, name: str, hub_options: Mapping[str, Any]) -> Path | None:
    found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub_options)
    return None if found is None else Path(found)
