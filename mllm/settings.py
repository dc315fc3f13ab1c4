"""Settings of a new unified model: in Python, under `mllm.model` of a recipe, and in config.json.

Every dataclass declares the ranges and choices of its fields and raises UserError for other values.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from ..common.errors import UserError, shown
from ..common.limits import in_range, limited, settings_from, validate
from ..tokenizer.settings import QuantizerConfig
from .generation.sampling import ImageSamplingConfig

LARGEST_VOCABULARY = 1 << 24
#: The two kinds of visual codes, in the order of a position's codes and of halves of its embedding.
BRANCHES = ("pixel", "semantic")


@dataclass(frozen=True)
class CodebookConfig:
    """The codebooks of one branch: those of one of the visual tokenizer's two residual quantizers.

    Args:
        num_codes: N, codes of one table.
        code_dim: C, length of a code vector.
        depth: D, codes of a position.
        shared_codebook: one table for all depths, or one per depth.
    """

    num_codes: int = limited(512, least=1, most=LARGEST_VOCABULARY)
    code_dim: int = limited(16, least=1, most=1 << 16)
    depth: int = limited(4, least=1, most=64)
    shared_codebook: bool = True

    def __post_init__(self) -> None:
        validate(self)

    @classmethod
    def of(cls, quantizer: QuantizerConfig) -> CodebookConfig:
        """The sizes of one of the visual tokenizer's quantizers."""
        return cls(**{one.name: getattr(quantizer, one.name) for one in fields(cls)})


@dataclass(frozen=True)
class DepthTransformerConfig:
    """Sizes of the depth transformers, the same in all branches."""

    hidden_size: int = limited(192, least=1, most=1 << 16)
    num_layers: int = limited(3, least=1, most=256)
    num_heads: int = limited(6, least=1, most=1024)
    intermediate_size: int = limited(512, least=1, most=1 << 18)

    def __post_init__(self) -> None:
        validate(self)
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")


@dataclass(frozen=True)
class ModelSettings:
    """Everything that may be chosen for a new model around a given LLM and visual tokenizer.

    Args:
        depth_transformer: sizes of the depth transformers.
        visual_branches: "both" (the paper), or for ablations "pixel" or "semantic": the other branch is
            neither an input of the LLM nor predicted. Image generation needs the pixel codes.
        pixel_condition: "none" (the paper: every depth transformer sees only the LLM's state) or "semantic":
            the pixel branch also sees the position's semantic codes, which are then sampled first.
        semantic_condition: "none" (the paper) or "pixel": the semantic branch also sees the position's pixel
            codes. Only one of the two branches can be conditioned.
        shared_classifier: one classifier for all depths (the paper) or one per depth.
        visual_position: "none" (the paper) or "learned": a zero-initialised row and column embedding is added
            to every visual input of the LLM.
        text_loss_weight, pixel_loss_weight, semantic_loss_weight: factors of the three losses.
        pixel_depth_weights, semantic_depth_weights: relative weight of each depth's cross-entropy; None means
            equal.
        visual_target_fraction: random share of the visual targets of every training step on which the depth
            transformers are trained; 1.0 trains on all. Saves compute; sums are scaled up, so that the
            expected loss is unchanged.
        image_sampling: the model's defaults for image generation.

    Raises:
        UserError: a value outside its range, or one that contradicts another; the message names the field.
    """

    depth_transformer: DepthTransformerConfig = DepthTransformerConfig()
    visual_branches: Literal["both", "pixel", "semantic"] = "both"
    pixel_condition: Literal["none", "semantic"] = "none"
    semantic_condition: Literal["none", "pixel"] = "none"
    shared_classifier: bool = True
    visual_position: Literal["none", "learned"] = "none"
    text_loss_weight: float = limited(1.0, least=0.0)
    pixel_loss_weight: float = limited(1.0, least=0.0)
    semantic_loss_weight: float = limited(1.0, least=0.0)
    pixel_depth_weights: list[float] | None = field(default=None, metadata=in_range(least=0.0))
    semantic_depth_weights: list[float] | None = field(default=None, metadata=in_range(least=0.0))
    visual_target_fraction: float = limited(1.0, above=0.0, most=1.0)
    image_sampling: ImageSamplingConfig = field(default=ImageSamplingConfig())

    def __post_init__(self) -> None:
        kinds = {"depth_transformer": DepthTransformerConfig, "image_sampling": ImageSamplingConfig}
        for name, kind in kinds.items():  # settings given by name become an object of `kind`
            object.__setattr__(self, name, settings_from(kind, getattr(self, name), name))
        validate(self)
        for name in ("pixel_depth_weights", "semantic_depth_weights"):
            weights = getattr(self, name)
            if weights is not None and not (isinstance(weights, list | tuple) and any(weights)):
                raise UserError(f"{name} is {shown(weights)}; give a number per depth, one of them above 0")
        conditions = self.pixel_condition, self.semantic_condition
        if self.visual_branches != "both" and conditions != ("none", "none"):
            raise UserError(
                f"visual_branches is {self.visual_branches!r}; a condition on the other branch needs 'both'"
            )
        if "none" not in conditions:
            raise UserError(
                "pixel_condition is 'semantic' and semantic_condition is 'pixel'; only one branch can be "
                "sampled first, so set one of them to 'none'"
            )
