"""The unified model: one causal language model that reads and writes text and images as dual visual codes."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_exports
from ..common.loading.auto_classes import register

if TYPE_CHECKING:
    from .assembly.adapters import LoraSettings, add_lora, merge_adapters
    from .assembly.assemble import build_processor
    from .assembly.model_folder import resolve_model
    from .assembly.storage import save_model
    from .configuration import DualTokenConfig
    from .conversation.chat_format import ChatFormat
    from .conversation.collation import CachedCodes, EncodedRecord
    from .conversation.messages import normalise_messages
    from .conversation.processing import DualTokenProcessor
    from .conversation.rendering import drop_prompt, is_text_to_image, render
    from .conversation.tokenizer_training import train_text_tokenizer
    from .generation.image_loop import GenerationCancelled
    from .generation.sampling import ImageSamplingConfig
    from .modeling import DualTokenForConditionalGeneration, build_model
    from .outputs import DualTokenOutput, LossTerms
    from .pipeline import DualTokenPipeline
    from .settings import CodebookConfig, DepthTransformerConfig, ModelSettings
else:
    __getattr__, __dir__ = lazy_exports(__name__)

register(
    "dualtoken",
    config=f"{__name__}.configuration:DualTokenConfig",
    AutoModel=f"{__name__}.modeling:DualTokenForConditionalGeneration",
    AutoModelForImageTextToText=f"{__name__}.modeling:DualTokenForConditionalGeneration",
    AutoModelForMultimodalLM=f"{__name__}.modeling:DualTokenForConditionalGeneration",
    AutoProcessor=f"{__name__}.conversation.processing:DualTokenProcessor",
)

__all__ = [
    "CachedCodes",
    "ChatFormat",
    "CodebookConfig",
    "DepthTransformerConfig",
    "DualTokenConfig",
    "DualTokenForConditionalGeneration",
    "DualTokenOutput",
    "DualTokenPipeline",
    "DualTokenProcessor",
    "EncodedRecord",
    "GenerationCancelled",
    "ImageSamplingConfig",
    "LoraSettings",
    "LossTerms",
    "ModelSettings",
    "add_lora",
    "build_model",
    "build_processor",
    "drop_prompt",
    "is_text_to_image",
    "merge_adapters",
    "normalise_messages",
    "render",
    "resolve_model",
    "save_model",
    "train_text_tokenizer",
]
