"""The language model of a new unified model: loaded or configured, checked, with an extended vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ...common.errors import UserError, first_line
from ...common.loading.bounded_settings import check_settings
from ...common.loading.model_files import check_model_files
from ...common.loading.quiet import LARGE, quiet, size_of
from ...common.loading.strict import loading_reason
from ...common.values import whole_number
from .gguf import gguf_config, is_gguf, load_gguf
from .weights import Weights

LanguageModelSource = str | Path | Mapping[str, Any] | PreTrainedConfig | PreTrainedModel


def open_llm(
    llm: LanguageModelSource, weights: Weights = Weights.LOADED
) -> tuple[PreTrainedModel | None, PreTrainedConfig]:
    """The trained LLM (None for a new one), and its configuration."""
    language_model = _trained(llm, weights)
    config = _configuration(llm) if language_model is None else language_model.config
    _refuse_unsupported(config)
    return language_model, config


def name_of(model: nn.Module, wanted: nn.Module) -> str:
    """The name under which a model has the module `wanted`."""
    return next(name for name, module in model.named_modules() if module is wanted)


@torch.no_grad()
def fit_vocabulary(
    language_model: PreTrainedModel, num_tokens: int, new_ids: list[int], multiple: int = 1
) -> None:
    """Make room for `num_tokens` tokens; added rows, and those of `new_ids`, become the mean of the old rows.

    A matrix that has to grow gets a multiple of `multiple` rows. Rows beyond the tokenizer stay.
    transformers' resizing samples new rows around the mean, so that no two runs would start equal.
    """
    for layer in _vocabulary_layers(language_model):
        layer.float()  # rows of weights that are still in their file in another format
    means = [_row_means(layer) for layer in _vocabulary_layers(language_model)]
    old_size = language_model.config.vocab_size
    if num_tokens > old_size:
        num_rows = padded_rows(num_tokens, multiple)
        language_model.resize_token_embeddings(num_rows, mean_resizing=False)
    rows = sorted({*new_ids, *range(old_size, language_model.config.vocab_size)})
    # A tied head shares its rows with the input embedding, and they get the same means.
    for layer, mean in zip(_vocabulary_layers(language_model), means, strict=True):
        for name, values in mean.items():
            getattr(layer, name)[rows] = values


def padded_rows(num_tokens: int, multiple: int) -> int:
    """The least multiple of `multiple` (`vocabulary_multiple`) that has a row for every token."""
    whole_number(multiple, "vocabulary_multiple", 1, 4096)
    return -(-num_tokens // multiple) * multiple


def _vocabulary_layers(language_model: PreTrainedModel) -> tuple[nn.Module, nn.Module]:
    return language_model.get_input_embeddings(), language_model.get_output_embeddings()


def _row_means(layer: nn.Module) -> dict[str, Tensor]:
    """Means over the vocabulary of a layer's weight and its bias, if any."""
    parameters = {name: getattr(layer, name, None) for name in ("weight", "bias")}
    return {name: value.mean(dim=0) for name, value in parameters.items() if value is not None}


def _trained(llm: LanguageModelSource, weights: Weights) -> PreTrainedModel | None:
    if isinstance(llm, (Mapping, PreTrainedConfig)):
        return None
    if isinstance(llm, PreTrainedModel):
        return nn.Module.float(llm)
    if is_gguf(llm):
        return _from_gguf(llm, weights)
    check_model_files(llm)
    try:
        with quiet(size_of(Path(llm).glob("*.safetensors")) if Path(llm).is_dir() else LARGE):
            model = AutoModelForCausalLM.from_pretrained(llm, dtype=weights.dtype, trust_remote_code=False)
    except Exception as error:  # untrusted files, read by the code of any language model
        raise UserError(
            f"no causal language model at {llm}; give its folder or hub id ({loading_reason(error)})"
        ) from error
    weights.of_saved(model)
    return model


def _from_gguf(file: str | Path, weights: Weights) -> PreTrainedModel:
    """The LLM of a GGUF file, which is dequantized only where the values are needed."""
    if weights is not Weights.ABSENT:
        return load_gguf(file)
    with weights.building():
        return AutoModelForCausalLM.from_config(
            gguf_config(file), dtype=torch.float32, trust_remote_code=False
        ).eval()


def _configuration(llm: Any) -> PreTrainedConfig:
    fields = llm.to_dict() if isinstance(llm, PreTrainedConfig) else dict(llm)
    model_type = fields.pop("model_type", None)
    if model_type is None:
        raise UserError("the language model's configuration needs 'model_type', for example 'llama'")
    check_settings(fields, "the language model's configuration")
    try:
        return AutoConfig.for_model(model_type, **fields)
    except Exception as error:  # a model type may raise any error for wrong settings
        raise UserError(
            f"language model configuration of type {model_type!r}: {first_line(error)}"
        ) from error


def _refuse_unsupported(text_config: PreTrainedConfig) -> None:
    if text_config.get_text_config() is not text_config:
        kind = text_config.model_type
        raise UserError(f"a model of type {kind!r} is more than a language model; give a text-only one")
    for name in ("logit_scale", "logits_scaling"):
        if getattr(text_config, name, None) not in (None, 1, 1.0):
            raise UserError(
                f"language models that scale their logits ({name}) are not supported; choose another one"
            )
