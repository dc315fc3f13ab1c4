"""The interface of the unified model for functions that take it and that modeling.py calls."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..tokenizer import DualTokenizer, VisualCodes
from .branch import Branches
from .configuration import DualTokenConfig
from .visual_codec import VisualCodec
from .visual_embedding import GridPosition


class UnifiedModel(Protocol):
    """A language model with branches of visual codes: `DualTokenForConditionalGeneration`."""

    config: DualTokenConfig
    generation_config: Any
    language_model: Any
    branches: Branches
    grid_position: GridPosition | None
    codec: VisualCodec
    adapters: list[Any]
    training: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def visual_tokenizer(self) -> DualTokenizer | None: ...

    def parameters(self) -> Any: ...

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> Any: ...

    def embed_sequence(self, input_ids: Tensor, codes: VisualCodes | None) -> Tensor: ...

    def embed_codes(self, codes: Mapping[str, Tensor], positions: Tensor) -> Tensor: ...

    def get_output_embeddings(self) -> Any: ...

    def touches_everything(self) -> bool: ...
