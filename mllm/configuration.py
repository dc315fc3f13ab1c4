"""Configuration of the unified model, its config.json: an LLM, codebooks, and the model's settings."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from ..common.errors import UserError, shown
from ..common.limits import settings_from
from ..common.loading.checked_config import CheckedConfig
from ..common.values import finite_number, whole_number
from .assembly.model_folder import MODEL_TYPE
from .generation.sampling import ImageSamplingConfig
from .settings import BRANCHES, LARGEST_VOCABULARY, CodebookConfig, DepthTransformerConfig, ModelSettings

_NESTED = (CodebookConfig, DepthTransformerConfig, ImageSamplingConfig)


class DualTokenConfig(CheckedConfig):
    """Configuration of a `DualTokenForConditionalGeneration`.

    The fields of `ModelSettings`, and those that follow from the LLM and the two tokenizers:

    Args:
        text_config: configuration of any causal language model of transformers (a dict with `model_type`, or
            the object).
        text_vocab_size: number of text tokens. Further rows of the embedding and of the output layer are
            padding and never predicted; None: every row is a token.
        pixel_codebook, semantic_codebook: `CodebookConfig`, or a dict of its fields.
        grid_size: (rows, columns) of the visual positions of one image.
        *_token_id: ids of the special tokens in the text vocabulary; None for those that an LLM's chat format
            does not use.
        unconditional_prompt_ids: the ids of guidance's unconditional prompt, up to the image; None is that of
            DualToken's own chat format.

    Raises:
        UserError: a value outside its range; the message names the field.
    """

    model_type = MODEL_TYPE
    # The name that every supported version of transformers reads.
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    # Typed Any: given as dict, object or None, but always complete after __post_init__.
    text_config: Any = None
    text_vocab_size: int | None = None
    grid_size: Any = (8, 8)
    pixel_codebook: CodebookConfig = CodebookConfig()
    semantic_codebook: CodebookConfig = CodebookConfig()
    depth_transformer: DepthTransformerConfig = ModelSettings.depth_transformer
    visual_branches: str = ModelSettings.visual_branches
    pixel_condition: str = ModelSettings.pixel_condition
    semantic_condition: str = ModelSettings.semantic_condition
    shared_classifier: bool = ModelSettings.shared_classifier
    visual_position: str = ModelSettings.visual_position
    text_loss_weight: float = ModelSettings.text_loss_weight
    pixel_loss_weight: float = ModelSettings.pixel_loss_weight
    semantic_loss_weight: float = ModelSettings.semantic_loss_weight
    pixel_depth_weights: list[float] | None = None
    semantic_depth_weights: list[float] | None = None
    visual_target_fraction: float = ModelSettings.visual_target_fraction
    image_sampling: ImageSamplingConfig = ModelSettings.image_sampling
    bos_token_id: Any = None
    pad_token_id: Any = None
    eos_token_id: Any = None
    user_token_id: Any = None
    assistant_token_id: Any = None
    image_start_token_id: Any = None
    image_token_id: Any = None
    image_end_token_id: Any = None
    unconditional_token_id: Any = None
    unconditional_prompt_ids: list[int] | None = None
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        names = [one.name for one in fields(ModelSettings)]
        settings = ModelSettings(**{name: getattr(self, name) for name in names})
        for name in names:
            setattr(self, name, getattr(settings, name))
        for name in ("pixel_codebook", "semantic_codebook"):
            setattr(self, name, settings_from(CodebookConfig, getattr(self, name), name))
        self.grid_size = _grid(self.grid_size)
        self.text_config = _language_model(self.text_config)
        super().__post_init__(**kwargs)
        # The language model's flag, repeated as in transformers' composite models.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        finite_number(self.initializer_range, "initializer_range", 0.0, 100.0)
        self._check_depth_weights()
        self._check_token_ids()

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json: nested objects are dicts."""
        nested = {key: asdict(value) for key, value in vars(self).items() if isinstance(value, _NESTED)}
        return super().to_dict() | nested

    @property
    def token_ids(self) -> dict[str, int]:
        """The ids of the special tokens that the chat format uses, by field."""
        names = [one.name for one in fields(self) if one.name.endswith("_token_id")]
        return {name: index for name in names if (index := getattr(self, name)) is not None}

    @property
    def num_text_tokens(self) -> int:
        """Number of text tokens; the text configuration's `vocab_size` is the number of rows."""
        rows: int = getattr(self.text_config, "vocab_size", LARGEST_VOCABULARY)
        return rows if self.text_vocab_size is None else self.text_vocab_size

    @property
    def num_positions(self) -> int:
        """Visual positions of one image: rows x columns."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that the model reads and predicts: "pixel", "semantic", or both."""
        return BRANCHES if self.visual_branches == "both" else (self.visual_branches,)

    @property
    def codebooks(self) -> dict[str, CodebookConfig]:
        """The visual tokenizer's codebooks, by branch; also of a branch that the model lacks."""
        return {"pixel": self.pixel_codebook, "semantic": self.semantic_codebook}

    @property
    def codes_per_image(self) -> int:
        """Codes of one image over both branches: positions x (pixel depth + semantic depth)."""
        return self.num_positions * sum(codebook.depth for codebook in self.codebooks.values())

    @property
    def sampling_order(self) -> tuple[str, ...]:
        """The branches in the order in which the codes of a position are sampled."""
        return self.branches if self.semantic_condition == "pixel" else self.branches[::-1]

    @property
    def conditions(self) -> dict[str, str]:
        """By conditioned branch, the branch whose codes it is conditioned on."""
        seen = {"pixel": self.pixel_condition, "semantic": self.semantic_condition}
        return {name: other for name, other in seen.items() if other != "none"}

    @property
    def depth_weights(self) -> dict[str, list[float]]:
        """By branch, the relative weight of each depth's cross-entropy."""
        given = {"pixel": self.pixel_depth_weights, "semantic": self.semantic_depth_weights}
        return {name: given[name] or [1.0] * book.depth for name, book in self.codebooks.items()}

    @property
    def loss_weights(self) -> dict[str, float]:
        """Factor of each loss that the model has, by name: text, pixel, semantic."""
        return {name: getattr(self, f"{name}_loss_weight") for name in ("text", *self.branches)}

    @property
    def softcap(self) -> float | None:
        """The LLM's cap of its logits, if any."""
        return getattr(self.text_config, "final_logit_softcapping", None)

    def made_up_codes(self, count: int, device: torch.device) -> dict[str, Tensor]:
        """By branch, valid codes (count, D) of dummy positions."""
        return {
            name: torch.zeros(count, book.depth, dtype=torch.long, device=device)
            for name, book in self.codebooks.items()
        }

    def _check_depth_weights(self) -> None:
        for name, weights in self.depth_weights.items():
            depth = self.codebooks[name].depth
            if len(weights) != depth:
                raise UserError(f"{name}_depth_weights is {shown(weights)}; it needs {depth} numbers")

    def _check_token_ids(self) -> None:
        """Raise UserError for special tokens outside the vocabulary."""
        rows = getattr(self.text_config, "vocab_size", LARGEST_VOCABULARY)
        if self.text_vocab_size is not None:
            whole_number(self.text_vocab_size, "text_vocab_size", 1, rows)
        last = self.num_text_tokens - 1
        for name, index in self.token_ids.items():
            whole_number(index, name, 0, last)
        prompt = self.unconditional_prompt_ids
        if not isinstance(prompt, list | tuple | None):
            raise UserError(f"unconditional_prompt_ids is {shown(prompt)}; give a list of token ids")
        for one in prompt or ():
            whole_number(one, "unconditional_prompt_ids", 0, last)


def _grid(given: Any) -> list[int]:
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise UserError(f"grid_size is {shown(given)}; give two integers (rows, columns)")
    return [whole_number(side, "grid_size", 1, 4096) for side in given]


def _language_model(given: Any) -> PreTrainedConfig:
    """`given` as a language model's configuration; settings without a model type, or None, are a llama's."""
    if isinstance(given, PreTrainedConfig):
        return given
    if not isinstance(given, Mapping | None):
        raise UserError(f"text_config is {shown(given)}; give the language model's settings by name")
    return AutoConfig.for_model(**{"model_type": "llama", **(given or {})})
