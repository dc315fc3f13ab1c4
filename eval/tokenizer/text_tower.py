"""A tokenizer's text side: texts to ids, ids to embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...tokenizer import DualTokenizer


class TextTower:
    """A tokenizer's text side as open_clip's functions call it: `encode_text(ids, normalize=True)`."""

    def __init__(self, tokenizer: DualTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (B, L) -> embeddings (B, E), in fp32."""
        features = self._tokenizer.get_text_features(text.to(self._tokenizer.device)).float()
        return F.normalize(features, dim=-1) if normalize else features


class TextIds:
    """Texts to ids of the full text length: SigLIP was trained on padded texts and collapses without."""

    def __init__(self, text_tokenizer: Any, length: int) -> None:
        self._text_tokenizer = text_tokenizer
        self._length = length

    @classmethod
    def of(cls, tokenizer: DualTokenizer, text_tokenizer: Any) -> TextIds:
        """The ids that a tokenizer's text side reads."""
        text: Any = tokenizer.config.text_config
        length = text["max_position_embeddings"] if isinstance(text, dict) else text.max_position_embeddings
        return cls(text_tokenizer, int(length))

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Texts -> ids (B, L)."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        encoded = self._text_tokenizer(
            listed, padding="max_length", truncation=True, max_length=self._length, return_tensors="pt"
        )
        ids: Tensor = encoded["input_ids"]
        return ids
