"""The dual visual tokenizer: images to pixel and semantic codes, and pixel codes back to images."""

from __future__ import annotations

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from ..common.errors import UserError
from ..common.images import load_image
from .configuration import DecoderConfig, DualTokenizerConfig, QuantizerConfig
from .modeling import DualTokenizer, DualTokenizerOutput, VisualCodes
from .processing import DualTokenizerImageProcessor
from .residual_vq import CodebookHealth, QuantizerOutput, ResidualQuantizer
from .stored import StoredTokenizer

# exist_ok: a test runner may import the package a second time under another name.
AutoConfig.register(DualTokenizerConfig.model_type, DualTokenizerConfig, exist_ok=True)
AutoModel.register(DualTokenizerConfig, DualTokenizer, exist_ok=True)
AutoImageProcessor.register(DualTokenizerConfig, DualTokenizerImageProcessor, exist_ok=True)

__all__ = [
    "CodebookHealth",
    "DecoderConfig",
    "DualTokenizer",
    "DualTokenizerConfig",
    "DualTokenizerImageProcessor",
    "DualTokenizerOutput",
    "QuantizerConfig",
    "QuantizerOutput",
    "ResidualQuantizer",
    "StoredTokenizer",
    "UserError",
    "VisualCodes",
    "load_image",
]
