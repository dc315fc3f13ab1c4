"""Put a unified model together from a language model, a text tokenizer and a visual tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..tokenizer import DualTokenizer, DualTokenizerImageProcessor
from ..tokenizer.errors import UserError, first_line
from ..tokenizer.files import atomic_folder
from .configuration import DualTokenConfig
from .conversation import ASSISTANT, BOS, END, IMAGE, IMAGE_END, IMAGE_START, PAD, UNCONDITIONAL, USER
from .modeling import DualTokenForConditionalGeneration
from .processing import DualTokenProcessor
from .text_tokenizer import add_special_tokens

TOKEN_FIELDS = {
    "bos_token_id": BOS,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "user_token_id": USER,
    "assistant_token_id": ASSISTANT,
    "image_start_token_id": IMAGE_START,
    "image_token_id": IMAGE,
    "image_end_token_id": IMAGE_END,
    "unconditional_token_id": UNCONDITIONAL,
}
CODEBOOK_FIELDS = ("num_codes", "code_dim", "depth", "shared_codebook")


def build_model(
    llm: str | Path | Mapping[str, Any] | PreTrainedConfig | PreTrainedModel,
    visual_tokenizer: str | Path | DualTokenizer,
    text_tokenizer: str | Path | PreTrainedTokenizerBase,
    **settings: Any,
) -> DualTokenForConditionalGeneration:
    """A unified model around any causal language model, with the visual tokenizer's codebooks copied in.

    Args:
        llm: a configuration (dict with `model_type`, or object) for a new LLM, or a folder, hub id or model
            whose weights are kept. Its embeddings are resized to the text tokenizer.
        visual_tokenizer: a `DualTokenizer`, or the folder or hub id of one. The model holds it, frozen;
            training on cached codes may let go of it (`detach_visual_tokenizer`).
        text_tokenizer: the LLM's tokenizer, or a folder or hub id; missing special tokens are added to it in
            place.
        **settings: fields of `DualTokenConfig`, such as `depth_transformer`, `pixel_condition`,
            `visual_position`.

    Raises:
        UserError: the parts do not exist or do not fit, or a setting is unknown.
    """
    tokenizer = load_text_tokenizer(text_tokenizer)
    add_special_tokens(tokenizer)
    codec: DualTokenizer = (
        visual_tokenizer
        if isinstance(visual_tokenizer, DualTokenizer)
        else DualTokenizer.from_pretrained(visual_tokenizer)
    )
    language_model = _language_model(llm)
    text_config = language_model.config if language_model is not None else _llm_config(llm)
    _refuse_scaled_logits(text_config)
    # A new LLM takes exactly the tokenizer's vocabulary; a trained one keeps rows it has beyond it.
    vocab_size = len(tokenizer) if language_model is None else max(len(tokenizer), text_config.vocab_size)
    if language_model is not None and vocab_size > text_config.vocab_size:
        language_model.resize_token_embeddings(vocab_size)
    text_config.vocab_size = vocab_size
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        setattr(text_config, name, tokenizer.convert_tokens_to_ids(TOKEN_FIELDS[name]))
    config = _config(text_config, tokenizer, codec, settings)
    if language_model is not None:
        # New projectors speak at the volume of the trained embeddings.
        embedding: Any = language_model.get_input_embeddings()
        config.initializer_range = float(embedding.weight.detach().float().std())
    model = DualTokenForConditionalGeneration(config)
    if language_model is not None:
        model.language_model.load_state_dict(language_model.state_dict())
    model.attach_visual_tokenizer(codec)
    return model


def build_processor(
    visual_tokenizer: DualTokenizer, text_tokenizer: str | Path | PreTrainedTokenizerBase
) -> DualTokenProcessor:
    """The processor of a model built from the same two tokenizers."""
    tokenizer = load_text_tokenizer(text_tokenizer)
    add_special_tokens(tokenizer)
    image_processor = DualTokenizerImageProcessor(size=visual_tokenizer.config.image_size)
    return DualTokenProcessor(image_processor, tokenizer, num_positions=visual_tokenizer.config.num_positions)


def save_model(
    model: DualTokenForConditionalGeneration, processor: DualTokenProcessor, folder: str | Path, **kwargs: Any
) -> None:
    """Write the one folder that `from_pretrained` loads: weights, both tokenizers, processor. All or nothing.

    `kwargs` go to the model's `save_pretrained` (such as `max_shard_size`). A folder already there is
    replaced.
    """
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, **kwargs)
        processor.save_pretrained(temporary)


def load_text_tokenizer(source: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A text tokenizer from a folder or hub id (or as given); UserError when there is none."""
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no text tokenizer at {source}; give its folder or hub id ({first_line(error)})"
        ) from error


def _language_model(llm: Any) -> PreTrainedModel | None:
    """The trained LLM that was given or named, or None for a configuration."""
    if isinstance(llm, (Mapping, PreTrainedConfig)):
        return None
    if isinstance(llm, PreTrainedModel):
        return llm
    try:
        return AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no causal language model at {llm}; give its folder or hub id ({first_line(error)})"
        ) from error


def _llm_config(llm: Any) -> PreTrainedConfig:
    fields = llm.to_dict() if isinstance(llm, PreTrainedConfig) else dict(llm)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise UserError("the language model's configuration needs 'model_type', for example 'llama'")
    try:
        return AutoConfig.for_model(model_type, **fields)
    except ValueError as error:
        raise UserError(
            f"language model configuration of type {model_type!r}: {first_line(error)}"
        ) from error


def _refuse_scaled_logits(text_config: PreTrainedConfig) -> None:
    for name in ("logit_scale", "logits_scaling"):
        if getattr(text_config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"language models that scale their logits ({name}) are not supported; choose another one"
            )


def _config(
    text_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    visual_tokenizer: DualTokenizer,
    settings: Mapping[str, Any],
) -> DualTokenConfig:
    derived: dict[str, Any] = {
        "text_config": text_config,
        "grid_size": list(visual_tokenizer.config.grid_size),
        "initializer_range": getattr(text_config, "initializer_range", 0.02),
    }
    for name in ("pixel", "semantic"):
        quantizer = getattr(visual_tokenizer.config, f"{name}_quantizer")
        derived[f"{name}_codebook"] = {field: quantizer[field] for field in CODEBOOK_FIELDS}
    derived |= {field: tokenizer.convert_tokens_to_ids(token) for field, token in TOKEN_FIELDS.items()}
    allowed = (
        set(DualTokenConfig.__dataclass_fields__) - set(derived) - set(PreTrainedConfig.__dataclass_fields__)
    )
    unknown = sorted(set(settings) - allowed)
    if unknown:
        raise UserError(f"unknown model settings {unknown}; allowed: {sorted(allowed)}")
    return DualTokenConfig(**derived, **settings)
