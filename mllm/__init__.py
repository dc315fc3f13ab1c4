"""The unified model: one causal language model that reads and writes text and images as dual visual codes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from .assemble import build_model, build_processor, save_model
from .configuration import DualTokenConfig
from .conversation import drop_prompt, is_text_to_image, normalise_messages, render
from .losses import LossTerms
from .modeling import DualTokenForConditionalGeneration, DualTokenOutput
from .processing import CachedCodes, DualTokenProcessor, EncodedRecord
from .text_tokenizer import train_text_tokenizer

# exist_ok: a test runner may import the package a second time under another name.
AutoConfig.register(DualTokenConfig.model_type, DualTokenConfig, exist_ok=True)
AutoModel.register(DualTokenConfig, DualTokenForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(DualTokenConfig, DualTokenForConditionalGeneration, exist_ok=True)
AutoModelForCausalLM.register(DualTokenConfig, DualTokenForConditionalGeneration, exist_ok=True)
AutoProcessor.register(DualTokenConfig, DualTokenProcessor, exist_ok=True)

__all__ = [
    "CachedCodes",
    "DualTokenConfig",
    "DualTokenForConditionalGeneration",
    "DualTokenOutput",
    "DualTokenProcessor",
    "EncodedRecord",
    "LossTerms",
    "build_model",
    "build_processor",
    "drop_prompt",
    "is_text_to_image",
    "normalise_messages",
    "render",
    "save_model",
    "train_text_tokenizer",
]
