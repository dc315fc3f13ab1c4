"""The dual visual tokenizer: images to pixel and semantic codes, and pixel codes back to images."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports
from ..common.loading.auto_classes import register

if TYPE_CHECKING:
    from ..common.errors import UserError
    from ..common.images.reading import load_image
    from .configuration import DualTokenizerConfig
    from .modeling import DualTokenizer
    from .outputs import DualTokenizerOutput, VisualCodes
    from .processing import DualTokenizerImageProcessor
    from .quantizer.residual_vq import CodebookHealth, QuantizerOutput, ResidualQuantizer
    from .settings import DecoderConfig, QuantizerConfig, TokenizerSettings
    from .stored import StoredTokenizer
else:
    __getattr__, __dir__ = lazy_exports(__name__)

register(
    "dualtoken_tokenizer",
    config=f"{__name__}.configuration:DualTokenizerConfig",
    AutoModel=f"{__name__}.modeling:DualTokenizer",
    AutoImageProcessor=f"{__name__}.processing:DualTokenizerImageProcessor",
)

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
    "TokenizerSettings",
    "UserError",
    "VisualCodes",
    "load_image",
]
