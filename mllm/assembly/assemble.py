"""Assemble a unified model from a language model, a text tokenizer and a visual tokenizer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...common.errors import UserError
from ...common.limits import settings_from
from ...common.loading.attention import check_attention, set_attention
from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor, StoredTokenizer
from ..configuration import DualTokenConfig
from ..conversation.chat_format import ChatFormat
from ..conversation.processing import DualTokenProcessor
from ..conversation.special_tokens import SPECIAL_TOKENS, VISUAL_TOKENS
from ..settings import BRANCHES, CodebookConfig, ModelSettings
from .llm import LanguageModelSource, fit_vocabulary, open_llm, padded_rows
from .tokenizers import (
    OWN_TOKEN_FIELDS,
    TextTokenizerSource,
    VisualTokenizerSource,
    load_text_tokenizer,
    open_visual_tokenizer,
    prepare_text_tokenizer,
    token_ids,
    unconditional_prompt_ids,
)
from .weights import Weights


def assemble(
    model_class: Callable[[DualTokenConfig, PreTrainedModel | None], Any],
    llm: LanguageModelSource,
    visual_tokenizer: VisualTokenizerSource,
    text_tokenizer: TextTokenizerSource | None = None,
    *,
    attn_implementation: str | None = None,
    load_visual_tokenizer: bool = True,
    weights: Weights = Weights.LOADED,
    vocabulary_multiple: int = 64,
    **settings: Any,
) -> Any:
    """A unified model around any causal language model, with the visual tokenizer's codebooks copied in.

    The LLM's chat template is kept where possible (see `ChatFormat`). New rows of its embeddings, and of an
    untied output layer, are the mean of the old ones.

    Args:
        llm: a configuration (dict with `model_type`, or object) for a new LLM, or a folder, hub id, GGUF
            file (dequantized) or model whose weights are kept (an object becomes part of the new model, in
            fp32). Its embeddings are resized to the text tokenizer.
        visual_tokenizer: a `DualTokenizer`, or the folder or hub id of one. The model holds it, frozen.
        text_tokenizer: the LLM's tokenizer, or a folder or hub id; missing special tokens are added to it in
            place. None takes the one in the LLM's folder, hub id or GGUF file.
        attn_implementation: of the language model, one of `bounded_settings.ATTENTION`.
        load_visual_tokenizer: False reads only the codebooks and the configuration of a folder or hub id,
            which is enough to train on cached codes.
        weights: where they are afterwards; training converts and distributes them.
        vocabulary_multiple: embedding and output layer get a multiple of this many rows, as GPUs multiply
            those faster; rows without a token are never predicted. An LLM with rows enough keeps them.
        **settings: fields of `ModelSettings`, such as `depth_transformer`, `pixel_condition`.

    Raises:
        UserError: the parts do not exist or do not fit, or a setting is unknown.
    """
    check_attention(attn_implementation)
    tokenizer = load_text_tokenizer(_text_tokenizer_of(llm) if text_tokenizer is None else text_tokenizer)
    known = set(tokenizer.get_vocab())
    chat_format = prepare_text_tokenizer(tokenizer)
    visual = open_visual_tokenizer(visual_tokenizer, load_visual_tokenizer)
    language_model, text_config = open_llm(llm, weights)
    if language_model is None:
        text_config.vocab_size = padded_rows(max(tokenizer.get_vocab().values()) + 1, vocabulary_multiple)
    else:
        _fit_to(language_model, tokenizer, known, vocabulary_multiple)
        # A composite configuration clears the setting in its parts.
        attn_implementation = attn_implementation or text_config._attn_implementation
    config = _config(text_config, tokenizer, chat_format, visual, settings)
    if language_model is not None:
        _keep_trained(language_model, config)
    with weights.building():
        model = model_class(config, language_model)
    if attn_implementation is not None:
        set_attention(model, attn_implementation)
    if isinstance(visual, DualTokenizer) and load_visual_tokenizer:
        model.attach_visual_tokenizer(visual)
    else:
        model.copy_codebooks(visual)
    return model


def build_processor(
    visual_tokenizer: VisualTokenizerSource, text_tokenizer: TextTokenizerSource
) -> DualTokenProcessor:
    """The processor of a model built from the same two tokenizers (or their folders or hub ids)."""
    tokenizer = load_text_tokenizer(text_tokenizer)
    chat_format = prepare_text_tokenizer(tokenizer)
    config = open_visual_tokenizer(visual_tokenizer, load=False).config
    return DualTokenProcessor(
        DualTokenizerImageProcessor.for_config(config),
        tokenizer,
        num_positions=config.num_positions,
        chat_format=chat_format,
    )


def _text_tokenizer_of(llm: LanguageModelSource) -> str | Path:
    if isinstance(llm, (str, Path)):
        return llm
    raise UserError(
        "text_tokenizer is missing; only a language model's folder or hub id includes one, so name a folder "
        "or hub id"
    )


def _fit_to(
    language_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: set[str], multiple: int
) -> None:
    """Make room for all tokens; the visual ones and special ones not `known` before are new."""
    vocabulary = tokenizer.get_vocab()
    new = [vocabulary[token] for token in SPECIAL_TOKENS if token in vocabulary and token not in known]
    new += [vocabulary[token] for token in VISUAL_TOKENS]
    fit_vocabulary(language_model, max(vocabulary.values()) + 1, new, multiple)


def _keep_trained(language_model: PreTrainedModel, config: DualTokenConfig) -> None:
    """Initialise projectors to the embeddings' RMS, and keep the trained weights."""
    embedding: Any = language_model.get_input_embeddings()
    if not embedding.weight.is_meta:
        config.initializer_range = float(embedding.weight.detach().float().std())
    config.text_config._name_or_path = ""  # a folder of this machine
    for module in language_model.modules():
        module._is_hf_initialized = True  # type: ignore[assignment]


def _config(
    text_config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
    visual_tokenizer: DualTokenizer | StoredTokenizer,
    settings: Mapping[str, Any],
) -> DualTokenConfig:
    ids = token_ids(tokenizer, chat_format)
    if chat_format.is_own:  # an LLM that keeps its format keeps its bos, pad and eos
        for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
            setattr(text_config, name, ids[name])
    derived: dict[str, Any] = {
        **dict.fromkeys(OWN_TOKEN_FIELDS),
        **ids,
        "unconditional_prompt_ids": unconditional_prompt_ids(tokenizer, chat_format),
        "text_config": text_config,
        "text_vocab_size": max(tokenizer.get_vocab().values()) + 1,
        "grid_size": list(visual_tokenizer.config.grid_size),
        "initializer_range": getattr(text_config, "initializer_range", 0.02),
    }
    for name in BRANCHES:
        derived[f"{name}_codebook"] = CodebookConfig.of(visual_tokenizer.config.quantizers[name])
    return DualTokenConfig(**derived, **vars(settings_from(ModelSettings, settings, "model")))
