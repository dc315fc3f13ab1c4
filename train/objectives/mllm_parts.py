"""The unified model with its processor and visual tokenizer: new, or of a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from ...common.errors import UserError
from ...common.loading.model_source import model_source
from ...common.loading.strict import TOKENIZER_FOLDER
from ...mllm import (
    DualTokenConfig,
    DualTokenForConditionalGeneration,
    DualTokenProcessor,
    ModelSettings,
    build_model,
    build_processor,
)
from ...mllm.assembly.tokenizers import load_text_tokenizer, stored_codebooks
from ...mllm.assembly.weights import Weights
from ...tokenizer import StoredTokenizer
from ..config.mllm import MllmObjectiveConfig
from ..config.starting_point import StartingPoint, reading_model


class Parts(NamedTuple):
    """The model to train, and what prepares its records and is exported with it."""

    model: DualTokenForConditionalGeneration
    processor: DualTokenProcessor
    visual_tokenizer: StoredTokenizer


def new_parts(config: MllmObjectiveConfig, weights: Weights) -> Parts:
    """A new model around the language model and the tokenizers that the recipe names."""
    text_tokenizer = config.text_tokenizer or config.llm
    if not isinstance(text_tokenizer, str) or config.llm is None or config.visual_tokenizer is None:
        raise UserError("mllm.text_tokenizer is missing; a new LLM has no text tokenizer, so name a folder")
    visual = StoredTokenizer.from_pretrained(config.visual_tokenizer).encoding_in(config.encode_precision)
    settings = vars(config.model or ModelSettings())
    options = {
        "load_visual_tokenizer": False,
        "weights": weights,
        "vocabulary_multiple": config.vocabulary_multiple,
    }
    model = build_model(config.llm, visual, text_tokenizer, **options, **settings)
    return Parts(model, build_processor(visual, text_tokenizer), visual)


def saved_parts(config: MllmObjectiveConfig, init_from: str, weights: Weights) -> Parts:
    """The saved model at `init_from`; the recipe may change its losses.

    Errors:
        UserError if there is no saved model, or if the recipe names tokenizers that do not fit it.
    """
    source = model_source(init_from)
    with reading_model(init_from):
        saved = StartingPoint(source, "mllm", DualTokenConfig.from_pretrained(source))
        processor = DualTokenProcessor.from_pretrained(source)
    named = config.text_tokenizer
    if named is not None and load_text_tokenizer(named).get_vocab() != processor.tokenizer.get_vocab():
        raise UserError(
            f"mllm.text_tokenizer {named} has another vocabulary than the model of init_from {init_from}; "
            "leave it out to use the model's"
        )
    visual = _visual_tokenizer(config.visual_tokenizer, source).encoding_in(config.encode_precision)
    with reading_model(init_from):
        model = DualTokenForConditionalGeneration.from_pretrained(
            source,
            config=saved.model_config(config.model),
            dtype=weights.dtype,
            load_visual_tokenizer=False,
        )
    _require_codebooks(model, visual, config, init_from)
    weights.of_saved(model)
    return Parts(model.train(), processor, visual)


def _require_codebooks(
    model: DualTokenForConditionalGeneration,
    visual: StoredTokenizer,
    config: MllmObjectiveConfig,
    init_from: str,
) -> None:
    """Raise UserError unless the visual tokenizer's codebooks are those of the model."""
    found = stored_codebooks(visual, model.config)
    if not all(torch.equal(branch.codebook.vectors, found[name]) for name, branch in model.branches.items()):
        raise UserError(
            f"mllm.visual_tokenizer {config.visual_tokenizer} has other codebooks than the model of "
            f"init_from {init_from}; leave it out to use the model's"
        )


def _visual_tokenizer(named: str | None, source: str) -> StoredTokenizer:
    """The visual tokenizer that the recipe names, or that of the saved model."""
    if named is not None:
        return StoredTokenizer.from_pretrained(named)
    if Path(source).is_dir():
        return StoredTokenizer.from_pretrained(Path(source) / TOKENIZER_FOLDER)
    return StoredTokenizer.from_pretrained(source, subfolder=TOKENIZER_FOLDER)
