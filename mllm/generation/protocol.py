"""What generation asks of the unified model."""

from typing import Any, Protocol

import torch
from torch import Tensor

from ...tokenizer import VisualCodes
from ..configuration import DualTokenConfig
from ..depth_transformer import DepthTransformer
from ..visual_embedding import FrozenCodebook


class UnifiedModel(Protocol):
    """A language model with visual embeddings and heads: `DualTokenForConditionalGeneration`."""

    config: DualTokenConfig
    generation_config: Any
    language_model: Any
    pixel_codebook: FrozenCodebook
    semantic_codebook: FrozenCodebook
    pixel_head: DepthTransformer | None
    semantic_head: DepthTransformer | None

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def visual_tokenizer(self) -> Any: ...

    def parameters(self) -> Any: ...

    def embed_sequence(self, input_ids: Tensor, codes: VisualCodes | None) -> Tensor: ...

    def embed_codes(self, pixel_codes: Tensor, semantic_codes: Tensor, positions: Tensor) -> Tensor: ...

    def pixel_condition(self, semantic_codes: Tensor) -> Tensor | None: ...

    def semantic_condition(self, pixel_codes: Tensor) -> Tensor | None: ...

    def given_codes(
        self, pixel_values: Tensor | None, pixel_codes: Tensor | None, semantic_codes: Tensor | None
    ) -> VisualCodes | None: ...

    def decode_pixel_codes(self, codes: Tensor) -> Tensor: ...
