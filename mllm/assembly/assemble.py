"""Put a unified model together from a language model, a text tokenizer and a visual tokenizer."""

import os
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

from ...common.errors import UserError, first_line
from ...common.files import atomic_folder
from ...common.limits import settings_from
from ...common.loading.bounded_settings import check_settings
from ...common.loading.model_files import check_model_files
from ...common.loading.quiet import LARGE, quiet, size_of
from ...common.loading.strict import loading_reason
from ...common.paths import user_path
from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor, StoredTokenizer
from ..configuration import DualTokenConfig
from ..conversation.chat_format import ChatFormat
from ..conversation.chat_template import derive_chat_format
from ..conversation.processing import DualTokenProcessor
from ..conversation.rendering import render, unconditional_prompt
from ..conversation.special_tokens import (
    ASSISTANT,
    BOS,
    END,
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    PAD,
    SPECIAL_TOKENS,
    UNCONDITIONAL,
    USER,
    VISUAL_TOKENS,
)
from ..conversation.text_tokenizer import add_special_tokens, encode_segments, special_pattern
from ..modeling import DualTokenForConditionalGeneration
from ..settings import BRANCHES, CodebookConfig, ModelSettings
from .model_card import model_card
from .model_folder import refuse_foreign
from .storage import check_attention

VISUAL_TOKEN_FIELDS = {
    "image_start_token_id": IMAGE_START,
    "image_token_id": IMAGE,
    "image_end_token_id": IMAGE_END,
    "unconditional_token_id": UNCONDITIONAL,
}
OWN_TOKEN_FIELDS = {
    "bos_token_id": BOS,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "user_token_id": USER,
    "assistant_token_id": ASSISTANT,
}


def build_model(
    llm: str | Path | Mapping[str, Any] | PreTrainedConfig | PreTrainedModel,
    visual_tokenizer: str | Path | DualTokenizer | StoredTokenizer,
    text_tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    *,
    attn_implementation: str | None = None,
    load_visual_tokenizer: bool = True,
    **settings: Any,
) -> DualTokenForConditionalGeneration:
    """A unified model around any causal language model, with the visual tokenizer's codebooks copied in.

    The LLM's chat template is kept where it has one that can be (see `ChatFormat`). New rows of its
    embeddings, and of an output head of its own, are the mean of the old ones.

    Args:
        llm: a configuration (dict with `model_type`, or object) for a new LLM, or a folder, hub id or model
            whose weights are kept (an object becomes part of the new model, in fp32). Its embeddings are
            resized to the text tokenizer.
        visual_tokenizer: a `DualTokenizer`, or the folder or hub id of one. The model holds it, frozen.
        text_tokenizer: the LLM's tokenizer, or a folder or hub id; missing special tokens are added to it in
            place. None takes the one in the LLM's folder or hub id.
        attn_implementation: of the language model: "sdpa", "eager" or "flash_attention_2".
        load_visual_tokenizer: False reads only the codebooks and the configuration of a folder or hub id;
            all that training on cached codes needs.
        **settings: fields of `ModelSettings`, such as `depth_transformer`, `pixel_condition`.

    Raises:
        UserError: the parts do not exist or do not fit, or a setting is unknown.
    """
    check_attention(attn_implementation)
    tokenizer = load_text_tokenizer(_text_tokenizer_of(llm) if text_tokenizer is None else text_tokenizer)
    known = set(tokenizer.get_vocab())
    chat_format = prepare_text_tokenizer(tokenizer)
    codec = _open_visual_tokenizer(visual_tokenizer, load_visual_tokenizer)
    language_model = _language_model(llm)
    text_config = language_model.config if language_model is not None else _llm_config(llm)
    _refuse_unsupported(text_config)
    vocabulary = tokenizer.get_vocab()
    num_tokens = max(vocabulary.values()) + 1
    if language_model is None:
        text_config.vocab_size = num_tokens
    else:
        new = [vocabulary[token] for token in SPECIAL_TOKENS if token in vocabulary and token not in known]
        new += [vocabulary[token] for token in VISUAL_TOKENS]
        _fit_vocabulary(language_model, num_tokens, new)
        # A composite configuration clears the setting in the parts that it is given.
        attn_implementation = attn_implementation or language_model.config._attn_implementation
    config = _config(text_config, tokenizer, chat_format, codec, settings)
    if language_model is not None:
        # New projectors speak at the volume of the trained embeddings.
        embedding: Any = language_model.get_input_embeddings()
        config.initializer_range = float(embedding.weight.detach().float().std())
        text_config._name_or_path = ""  # a place on this machine
        for module in language_model.modules():
            module._is_hf_initialized = True  # type: ignore[assignment]  # trained, not to be drawn anew
    model = DualTokenForConditionalGeneration(config, language_model)
    if attn_implementation is not None:
        _set_attention(model, attn_implementation)
    if isinstance(codec, DualTokenizer) and load_visual_tokenizer:
        model.attach_visual_tokenizer(codec)
    else:
        model.copy_codebooks(codec)
    return model


def build_processor(
    visual_tokenizer: str | Path | DualTokenizer | StoredTokenizer,
    text_tokenizer: str | Path | PreTrainedTokenizerBase,
) -> DualTokenProcessor:
    """The processor of a model built from the same two tokenizers (or their folders or hub ids)."""
    tokenizer = load_text_tokenizer(text_tokenizer)
    chat_format = prepare_text_tokenizer(tokenizer)
    config = _open_visual_tokenizer(visual_tokenizer, load=False).config
    return DualTokenProcessor(
        DualTokenizerImageProcessor(size=config.image_size),
        tokenizer,
        num_positions=config.num_positions,
        chat_format=chat_format,
    )


def prepare_text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    """Add the special tokens that are missing, in place; returns the format of conversations."""
    chat_format = derive_chat_format(tokenizer)
    add_special_tokens(tokenizer, chat_format)
    return chat_format


def unconditional_prompt_ids(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> list[int] | None:
    """The ids that guidance's unconditional branch starts from, up to the image; None: those of the own
    format.
    """
    if chat_format.is_own:
        return None
    segments = render(unconditional_prompt(), add_generation_prompt=True, chat_format=chat_format)
    pieces = encode_segments(tokenizer, segments, 0, special_pattern(tokenizer))
    return [one for ids, _ in pieces for one in ids]


def save_model(
    model: DualTokenForConditionalGeneration,
    processor: DualTokenProcessor,
    folder: str | os.PathLike[str],
    **kwargs: Any,
) -> None:
    """Write the one folder that `from_pretrained` loads: weights, both tokenizers, processor, model card. All
    or nothing.

    `kwargs` go to the model's `save_pretrained` (such as `max_shard_size`). A model already
    there is replaced.

    Raises:
        UserError: the folder holds something else, which would be lost.
    """
    folder = user_path(folder)
    refuse_foreign(folder)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, **kwargs)
        processor.save_pretrained(temporary)
        model_card(model).save(temporary / "README.md")


def load_text_tokenizer(source: str | Path | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A text tokenizer from a folder or hub id (or as given); UserError when there is none."""
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    check_model_files(source)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # files from elsewhere, read by transformers and tokenizers
        raise UserError(
            f"no text tokenizer at {source}; give its folder or hub id ({loading_reason(error)})"
        ) from error


def _language_model(llm: Any) -> PreTrainedModel | None:
    """The trained LLM that was given or named, or None for a configuration."""
    if isinstance(llm, (Mapping, PreTrainedConfig)):
        return None
    if isinstance(llm, PreTrainedModel):
        return torch.nn.Module.float(llm)
    check_model_files(llm)
    try:
        with quiet(size_of(Path(llm).glob("*.safetensors")) if Path(llm).is_dir() else LARGE):
            return AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # files from elsewhere, read by the code of a hundred language models
        raise UserError(
            f"no causal language model at {llm}; give its folder or hub id ({loading_reason(error)})"
        ) from error


def _llm_config(llm: Any) -> PreTrainedConfig:
    fields = llm.to_dict() if isinstance(llm, PreTrainedConfig) else dict(llm)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise UserError("the language model's configuration needs 'model_type', for example 'llama'")
    check_settings(fields, "the language model's configuration")
    try:
        return AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # a hundred model types read their settings, and expect right ones
        raise UserError(
            f"language model configuration of type {model_type!r}: {first_line(error)}"
        ) from error


def _text_tokenizer_of(llm: Any) -> str | Path:
    if isinstance(llm, (str, Path)):
        return llm
    raise UserError(
        "text_tokenizer is missing; only a language model's folder or hub id has one of its own, so name a "
        "folder or hub id"
    )


def _open_visual_tokenizer(source: Any, load: bool) -> DualTokenizer | StoredTokenizer:
    if isinstance(source, DualTokenizer):
        return source
    stored = source if isinstance(source, StoredTokenizer) else StoredTokenizer.from_pretrained(source)
    return stored.load() if load else stored


@torch.no_grad()
def _fit_vocabulary(language_model: PreTrainedModel, num_tokens: int, new_ids: list[int]) -> None:
    """Room for `num_tokens` tokens; rows added, and those of `new_ids`, become the mean of the old rows.

    Rows that the LLM has beyond its tokenizer (padding of the matrix) stay. transformers' own resizing draws
    new rows around the mean, so no two runs would start alike.
    """
    means = [_row_means(layer) for layer in _vocabulary_layers(language_model)]
    old_size = language_model.config.vocab_size
    if num_tokens > old_size:
        language_model.resize_token_embeddings(num_tokens, mean_resizing=False)
    rows = sorted({*new_ids, *range(old_size, num_tokens)})
    # A tied head shares its rows with the input embedding, and they get the same means.
    for layer, mean in zip(_vocabulary_layers(language_model), means, strict=True):
        for name, values in mean.items():
            getattr(layer, name)[rows] = values


def _vocabulary_layers(language_model: PreTrainedModel) -> tuple[torch.nn.Module, torch.nn.Module]:
    return language_model.get_input_embeddings(), language_model.get_output_embeddings()


def _row_means(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Mean over the vocabulary of a layer's weight and, where it has one, bias."""
    parameters = {name: getattr(layer, name, None) for name in ("weight", "bias")}
    return {name: value.mean(dim=0) for name, value in parameters.items() if value is not None}


def _set_attention(model: PreTrainedModel, implementation: str) -> None:
    try:
        model.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"attn_implementation {implementation!r} is not for this language model: {first_line(error)}"
        ) from error


def _refuse_unsupported(text_config: PreTrainedConfig) -> None:
    if text_config.get_text_config() is not text_config:
        raise UserError(
            f"a model of type {text_config.model_type!r} is more than a language model; give one for text "
            "only"
        )
    for name in ("logit_scale", "logits_scaling"):
        if getattr(text_config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"language models that scale their logits ({name}) are not supported; choose another one"
            )


def _token_ids(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat) -> dict[str, Any]:
    """The configuration's `*_token_id` fields."""
    fields = OWN_TOKEN_FIELDS if chat_format.is_own else {"eos_token_id": chat_format.end}
    named = {**fields, **VISUAL_TOKEN_FIELDS}
    ids = {field: tokenizer.convert_tokens_to_ids(token) for field, token in named.items()}
    if chat_format.is_own:
        return ids
    return {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id, **ids}


def _config(
    text_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
    visual_tokenizer: DualTokenizer | StoredTokenizer,
    settings: Mapping[str, Any],
) -> DualTokenConfig:
    ids = _token_ids(tokenizer, chat_format)
    if chat_format.is_own:  # an LLM that keeps its format keeps its bos, pad and eos
        for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
            setattr(text_config, name, ids[name])
    derived: dict[str, Any] = {
        **dict.fromkeys(OWN_TOKEN_FIELDS),
        **ids,
        "unconditional_prompt_ids": unconditional_prompt_ids(tokenizer, chat_format),
        "text_config": text_config,
        "grid_size": list(visual_tokenizer.config.grid_size),
        "initializer_range": getattr(text_config, "initializer_range", 0.02),
    }
    for name in BRANCHES:
        quantizer = visual_tokenizer.config.quantizers[name]
        derived[f"{name}_codebook"] = CodebookConfig.of(quantizer)
    return DualTokenConfig(**derived, **vars(settings_from(ModelSettings, settings, "model")))
