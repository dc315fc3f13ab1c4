"""Configuration of the unified model: an LLM, two codebooks, two projectors, two depth transformers."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from ..common.errors import UserError, shown
from ..common.loading.checked_config import CheckedConfig
from ..common.values import finite_number, flag, whole_number
from .assembly.model_folder import MODEL_TYPE
from .generation.sampling import ImageSamplingOptions

PIXEL_CONDITIONS = ("none", "semantic")
SEMANTIC_CONDITIONS = ("none", "pixel")
VISUAL_POSITIONS = ("none", "learned")
VISUAL_BRANCHES = ("both", "pixel", "semantic")
CHOICES = {
    "visual_branches": VISUAL_BRANCHES,
    "pixel_condition": PIXEL_CONDITIONS,
    "semantic_condition": SEMANTIC_CONDITIONS,
    "visual_position": VISUAL_POSITIONS,
}
LARGEST_VOCABULARY = 1 << 24
# Most of each size, from 1 on.
CODEBOOK_LIMITS = {"num_codes": LARGEST_VOCABULARY, "code_dim": 1 << 16, "depth": 64}
DEPTH_TRANSFORMER_LIMITS = {
    "hidden_size": 1 << 16,
    "num_layers": 256,
    "num_heads": 1024,
    "intermediate_size": 1 << 18,
}
TOKEN_ID_FIELDS = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "user_token_id",
    "assistant_token_id",
    "image_start_token_id",
    "image_token_id",
    "image_end_token_id",
    "unconditional_token_id",
)

DEFAULT_CODEBOOK = {"num_codes": 512, "code_dim": 16, "depth": 4, "shared_codebook": True}
DEFAULT_DEPTH_TRANSFORMER = {"hidden_size": 192, "num_layers": 3, "num_heads": 6, "intermediate_size": 512}


class DualTokenConfig(CheckedConfig):
    """Everything that fixes the parameters of a `DualTokenForConditionalGeneration`.

    Args:
        text_config: configuration of any causal language model of transformers (a dict with `model_type`, or
            the object).
        pixel_codebook, semantic_codebook: `{num_codes, code_dim, depth, shared_codebook}` of the visual
            tokenizer's two residual quantizers; `shared_codebook` says that all depths look up one table.
        grid_size: (rows, columns) of the visual positions of one image.
        depth_transformer: `{hidden_size, num_layers, num_heads, intermediate_size}` of both visual heads.
        visual_branches: "both" (the paper), or for ablations "pixel" or "semantic" alone: the other branch is
            neither an input of the LLM nor predicted. Drawing needs the pixel codes.
        pixel_condition: "none" (the paper: both heads see only the LLM's state) or "semantic": the pixel head
            also sees the semantic codes of the same position, which generation then samples first.
        semantic_condition: "none" (the paper) or "pixel": the other way round, the semantic head also sees
            the position's pixel codes. Only one of the two heads can be conditioned.
        shared_classifier: one classifier for all depths (the paper) or one per depth.
        visual_position: "none" (the paper) or "learned": a zero-initialised row and column embedding is added
            to every visual input of the LLM.
        text_loss_weight, pixel_loss_weight, semantic_loss_weight: factors of the three losses.
        pixel_depth_weights, semantic_depth_weights: relative weight of each depth's cross-entropy; None means
            equal.
        visual_target_fraction: share of the visual targets, drawn anew at every training step, on which the
            depth heads are trained; 1.0 trains on all. Saves compute; sums are scaled up, so the expected
            loss is unchanged.
        image_sampling: the model's own defaults for drawing images, fields of `ImageSamplingOptions`.
        *_token_id: ids of the special tokens in the text vocabulary; None for those that the language model's
            own chat format does without.
        unconditional_prompt_ids: the ids of guidance's unconditional prompt, up to the image; None is that of
            DualToken's own chat format.

    Raises:
        UserError: a value outside its range; the message names the field.
    """

    model_type = MODEL_TYPE
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")}

    # Typed Any: given as dict, object or None, but always complete after __post_init__.
    text_config: Any = None
    pixel_codebook: Any = None
    semantic_codebook: Any = None
    grid_size: Any = (8, 8)
    depth_transformer: Any = None
    visual_branches: str = "both"
    pixel_condition: str = "none"
    semantic_condition: str = "none"
    shared_classifier: bool = True
    visual_position: str = "none"
    text_loss_weight: float = 1.0
    pixel_loss_weight: float = 1.0
    semantic_loss_weight: float = 1.0
    pixel_depth_weights: list[float] | None = None
    semantic_depth_weights: list[float] | None = None
    visual_target_fraction: float = 1.0
    image_sampling: dict | None = None
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
        self.pixel_codebook = _merged("pixel_codebook", self.pixel_codebook, DEFAULT_CODEBOOK)
        self.semantic_codebook = _merged("semantic_codebook", self.semantic_codebook, DEFAULT_CODEBOOK)
        self.depth_transformer = _merged(
            "depth_transformer", self.depth_transformer, DEFAULT_DEPTH_TRANSFORMER
        )
        self.grid_size = _grid(self.grid_size)
        super().__post_init__(**kwargs)
        # Tying belongs to the language model; the outer flag repeats it, as transformers' own composite
        # models do.
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self._validate()

    @property
    def num_positions(self) -> int:
        """Visual positions of one image: rows x columns."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def codes_per_image(self) -> int:
        """Codes of one image over both branches: positions x (pixel depth + semantic depth)."""
        return self.num_positions * (self.pixel_codebook["depth"] + self.semantic_codebook["depth"])

    @property
    def loss_weights(self) -> dict[str, float]:
        """Factor of each loss that the model has, by name: text, pixel, semantic."""
        weights = {
            "text": self.text_loss_weight,
            "pixel": self.pixel_loss_weight,
            "semantic": self.semantic_loss_weight,
        }
        return {name: weight for name, weight in weights.items() if name == "text" or self.has_branch(name)}

    def has_branch(self, name: str) -> bool:
        """Whether the model reads and predicts the codes of branch "pixel" or "semantic"."""
        return self.visual_branches in ("both", name)

    def _validate(self) -> None:
        """Raise UserError for a value outside its range, or one that contradicts another."""
        ImageSamplingOptions.of(self.image_sampling)
        for name in ("pixel_codebook", "semantic_codebook"):
            _check_sizes(name, getattr(self, name), CODEBOOK_LIMITS)
            flag(getattr(self, name)["shared_codebook"], f"{name}.shared_codebook")
        _check_sizes("depth_transformer", self.depth_transformer, DEPTH_TRANSFORMER_LIMITS)
        width, heads = self.depth_transformer["hidden_size"], self.depth_transformer["num_heads"]
        if width % heads:
            raise UserError(f"depth_transformer.hidden_size {width} is not a multiple of num_heads {heads}")
        self._check_choices()
        self._check_losses()
        self._check_token_ids()
        finite_number(self.initializer_range, "initializer_range", 0.0, 100.0)
        flag(self.shared_classifier, "shared_classifier")

    def _check_choices(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {shown(getattr(self, name))}; allowed: {', '.join(allowed)}")
        if self.visual_branches != "both" and not self.pixel_condition == self.semantic_condition == "none":
            raise UserError(
                f"visual_branches is {self.visual_branches!r}; a condition on the other branch needs 'both'"
            )
        if "none" not in (self.pixel_condition, self.semantic_condition):
            raise UserError(
                "pixel_condition is 'semantic' and semantic_condition is 'pixel'; only one branch can be "
                "sampled first, so set one of them to 'none'"
            )

    def _check_losses(self) -> None:
        finite_number(self.visual_target_fraction, "visual_target_fraction", most=1.0, above=0.0)
        for name in ("text", "pixel", "semantic"):
            finite_number(getattr(self, f"{name}_loss_weight"), f"{name}_loss_weight", 0.0)
        for name in ("pixel", "semantic"):
            weights = getattr(self, f"{name}_depth_weights")
            depth = getattr(self, f"{name}_codebook")["depth"]
            if weights is None:
                continue
            if not isinstance(weights, list | tuple) or len(weights) != depth:
                raise UserError(f"{name}_depth_weights is {shown(weights)}; it needs {depth} numbers")
            numbers = [finite_number(weight, f"{name}_depth_weights", 0.0) for weight in weights]
            if not any(numbers):
                raise UserError(f"{name}_depth_weights is {shown(weights)}; one of them must be above 0")

    def _check_token_ids(self) -> None:
        """Raise UserError for special tokens outside the vocabulary."""
        last = getattr(self.text_config, "vocab_size", LARGEST_VOCABULARY) - 1
        for name in TOKEN_ID_FIELDS:
            if getattr(self, name) is not None:
                whole_number(getattr(self, name), name, 0, last)
        prompt = self.unconditional_prompt_ids
        if not isinstance(prompt, list | tuple | None):
            raise UserError(f"unconditional_prompt_ids is {shown(prompt)}; give a list of token ids")
        for one in prompt or ():
            whole_number(one, "unconditional_prompt_ids", 0, last)


def _check_sizes(name: str, sizes: Mapping[str, Any], limits: Mapping[str, int]) -> None:
    for key, most in limits.items():
        whole_number(sizes[key], f"{name}.{key}", 1, most)


def _grid(given: Any) -> list[int]:
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise UserError(f"grid_size is {shown(given)}; give two whole numbers (rows, columns)")
    return [whole_number(side, "grid_size", 1, 4096) for side in given]


def _merged(name: str, given: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """`defaults` overridden by `given`; an unknown key is the user's mistake."""
    if not isinstance(given, Mapping | None):
        raise UserError(f"{name} is {shown(given)}; give its settings by name")
    unknown = sorted(set(given or {}) - set(defaults))
    if unknown:
        raise UserError(f"{name} has unknown keys {shown(unknown)}; allowed: {sorted(defaults)}")
    return {**defaults, **(given or {})}
