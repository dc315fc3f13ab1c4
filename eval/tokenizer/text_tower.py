"""A tokenizer's text tower: texts to ids, ids to embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ...tokenizer import DualTokenizer
from .family import Family, Subject, Unavailable


class TextTower:
    """A tokenizer's text tower with the interface of open_clip: `encode_text(ids, normalize=True)`."""

    def __init__(self, tokenizer: DualTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Token ids (B, L) -> embeddings (B, E), in fp32."""
        features = self._tokenizer.get_text_features(text.to(self._tokenizer.device)).float()
        return F.normalize(features, dim=-1) if normalize else features


class TextIds:
    """Texts to ids padded to the full text length, as SigLIP was trained on and needs."""

    def __init__(self, text_tokenizer: Any, length: int) -> None:
        self._text_tokenizer = text_tokenizer
        self._length = length

    @classmethod
    def of(cls, tokenizer: DualTokenizer, text_tokenizer: Any) -> TextIds:
        """The ids of a tokenizer's text tower."""
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


class TextFamily(Family):
    """A family that compares embeddings of images and of texts."""

    needs_features = True
    name: str

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        text_tokenizer = subject.options.text_tokenizer
        if text_tokenizer is None:
            raise Unavailable(self.name, "needs the text tokenizer of the visual tokenizer's folder")
        self._tower = TextTower(subject.tokenizer)
        self._ids = TextIds.of(subject.tokenizer, text_tokenizer)
