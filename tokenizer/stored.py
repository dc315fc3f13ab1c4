"""Lazy access to the weights of a saved tokenizer, without building the model."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..common.errors import UserError
from ..common.loading.strict import tokenizer_source
from ..common.loading.weight_files import weight_files
from .configuration import DualTokenizerConfig
from .loading import check_is_tokenizer
from .modeling import DualTokenizer
from .precision import EncodePrecision

CODEBOOKS = ("pixel_quantizer.codebooks.vectors", "semantic_quantizer.codebooks.vectors")


class StoredWeights(Mapping[str, Tensor]):
    """Tensors by name, each read from its file on access; floating ones in fp32, as in the loaded model."""

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
    """Configuration and weights of a saved tokenizer, for working with cached codes."""

    source: str
    config: DualTokenizerConfig
    weights: StoredWeights
    hub_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **hub_options: Any) -> StoredTokenizer:
        """Open a folder, a hub id or "nano"; UserError for something that is not a tokenizer or cannot
        be read.
        """
        source = tokenizer_source(source)
        check_is_tokenizer(source, hub_options)
        config = DualTokenizerConfig.from_pretrained(source, **hub_options)
        weights = StoredWeights(weight_files(source, hub_options, "a tokenizer"))
        needed = CODEBOOKS[1:] if config.shared_quantizer else CODEBOOKS
        missing = [name for name in needed if name not in weights]
        if missing:
            raise UserError(
                f"weights in {str(source)!r} lack {missing}; give the folder of a saved tokenizer"
            )
        return cls(source, config, weights, hub_options)

    def state_dict(self) -> StoredWeights:
        """The loaded model's `state_dict`, read lazily."""
        return self.weights

    def encoding_in(self, precision: EncodePrecision | None) -> StoredTokenizer:
        """This tokenizer with another `encode_precision`; None: its own."""
        if precision is None:
            return self
        config = copy.deepcopy(self.config)
        config.encode_precision = precision
        return replace(self, config=config)

    def load(self) -> DualTokenizer:
        """The complete tokenizer."""
        precision = self.config.encode_precision
        return DualTokenizer.from_pretrained(self.source, encode_precision=precision, **self.hub_options)
