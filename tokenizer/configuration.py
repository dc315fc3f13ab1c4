"""Configuration of the dual tokenizer (config.json): the SigLIP backbone and the tokenizer's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, ClassVar

from transformers import PreTrainedConfig, SiglipTextConfig, SiglipVisionConfig

from ..common.errors import UserError, shown
from ..common.loading.checked_config import CheckedConfig
from ..common.values import whole_number
from .precision import EncodePrecision
from .resizing import GREY, Resample, ResizeMode
from .settings import SMALL_DECODER, SMALL_QUANTIZER, DecoderConfig, QuantizerConfig, TokenizerSettings

_SETTINGS = tuple(one.name for one in fields(TokenizerSettings))


class DualTokenizerConfig(CheckedConfig):
    """Configuration of `DualTokenizer`: the fields of `TokenizerSettings` and those of the backbone.

    Args:
        vision_config, text_config: fields of `SiglipVisionConfig` / `SiglipTextConfig` (a dict or an object).
            Default: a small model for 64 x 64 images.

    Raises:
        UserError: invalid or inconsistent settings.
    """

    model_type = "dualtoken_tokenizer"
    packaged_folder = "visual_tokenizer"
    sub_configs: ClassVar[dict[str, Any]] = {
        "vision_config": SiglipVisionConfig,
        "text_config": SiglipTextConfig,
    }

    # Any: given as dicts, as objects or not at all, and never None afterwards.
    vision_config: Any = None
    text_config: Any = None
    pixel_layer: int = TokenizerSettings.pixel_layer
    semantic_layer: int = TokenizerSettings.semantic_layer
    shortcut_layer: int | None = TokenizerSettings.shortcut_layer
    shortcut_weight: float = TokenizerSettings.shortcut_weight
    pixel_quantizer: QuantizerConfig = SMALL_QUANTIZER
    semantic_quantizer: QuantizerConfig = SMALL_QUANTIZER
    decoder: DecoderConfig = SMALL_DECODER
    causal_post_projection: bool = TokenizerSettings.causal_post_projection
    shared_quantizer: bool = TokenizerSettings.shared_quantizer
    separate_encoders: bool = TokenizerSettings.separate_encoders
    encode_precision: EncodePrecision = TokenizerSettings.encode_precision
    resize_mode: ResizeMode = TokenizerSettings.resize_mode
    resample: Resample = TokenizerSettings.resample
    pad_colour: tuple[int, int, int] = GREY

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _siglip_part(SiglipVisionConfig, self.vision_config, _NANO_VISION)
        self.text_config = _siglip_part(SiglipTextConfig, self.text_config, _NANO_TEXT)
        given: dict[str, Any] = {name: getattr(self, name) for name in _SETTINGS}
        if isinstance(given["decoder"], Mapping):  # older files also hold the derived size
            given["decoder"] = {key: one for key, one in given["decoder"].items() if key != "resolution"}
        settings = TokenizerSettings(**given)
        for name in _SETTINGS:
            setattr(self, name, getattr(settings, name))
        super().__post_init__(**kwargs)
        self._check_backbone()
        self._check_fit()

    def to_dict(self) -> dict[str, Any]:
        """The settings in the form of config.json: nested objects are dicts, tuples are lists."""
        found = super().to_dict()
        return {key: _plain(value) if is_dataclass(value) else value for key, value in found.items()}

    def to_diff_dict(self) -> dict[str, Any]:
        """Every setting, so that a saved tokenizer does not depend on the defaults of a version."""
        return _without(self.to_dict(), {"_name_or_path", "id2label", "label2id", "problem_type"})

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """SigLIP's text tower; transformers would interpret `decoder` as a second text model."""
        return self.text_config

    @property
    def quantizers(self) -> dict[str, QuantizerConfig]:
        """The settings of both quantizers, by branch."""
        return {"pixel": self.pixel_quantizer, "semantic": self.semantic_quantizer}

    def _check_fit(self) -> None:
        """Raise UserError for settings that do not fit the backbone."""
        layers = self.vision_config.num_hidden_layers
        for name in ("pixel_layer", "semantic_layer", "shortcut_layer"):
            number = getattr(self, name)
            if number is not None and number > layers:
                raise UserError(
                    f"{name} is {number}; the backbone has {layers} layers, so give 0 to {layers}"
                )
        if self.decoder.resolution != self.image_size:
            raise UserError(
                f"the decoder makes {self.decoder.resolution} px images (latent_size x 2^(levels-1)) but the "
                f"backbone reads {self.image_size} px; change decoder latent_size or ch_mult"
            )
        for branch, quantizer in self.quantizers.items():
            if self.hidden_size % quantizer.code_dim:
                raise UserError(
                    f"{branch}_quantizer code_dim {quantizer.code_dim} does not divide the backbone's width "
                    f"{self.hidden_size}"
                )

    def _check_backbone(self) -> None:
        for name in ("vision_config", "text_config"):
            part = getattr(self, name)
            sizes = {"hidden_size": 1 << 20, "intermediate_size": 1 << 20, "num_attention_heads": 4096}
            for key, most in sizes.items():
                whole_number(getattr(part, key), f"{name}.{key}", 1, most)
            whole_number(part.num_hidden_layers, f"{name}.num_hidden_layers", 0, 4096)
            if part.hidden_size % part.num_attention_heads:
                raise UserError(
                    f"{name}.hidden_size {part.hidden_size} is not a multiple of num_attention_heads "
                    f"{part.num_attention_heads}"
                )
        side = whole_number(self.vision_config.image_size, "vision_config.image_size", 1, 1 << 16)
        whole_number(self.vision_config.patch_size, "vision_config.patch_size", 1, side)

    @property
    def hidden_size(self) -> int:
        """Width of the vision backbone."""
        return self.vision_config.hidden_size

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.vision_config.image_size

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the code map; incomplete patches at the border are ignored."""
        side = self.image_size // self.vision_config.patch_size
        return side, side

    @property
    def num_positions(self) -> int:
        """Positions of the code map."""
        rows, columns = self.grid_size
        return rows * columns


def _siglip_part(kind: type[PreTrainedConfig], given: Any, default: dict[str, Any]) -> PreTrainedConfig:
    """`given` as a config object of `kind`; None: the default."""
    if isinstance(given, kind):
        return given
    if isinstance(given, PreTrainedConfig):
        given = given.to_dict()
    if not isinstance(given, Mapping | None):
        raise UserError(f"{kind.base_config_key} is {shown(given)}; give its settings by name")
    settings = dict(default if given is None else given)
    if kind is SiglipTextConfig:
        # Unused by SigLIP's text tower; transformers' defaults are outside of small vocabularies.
        settings = {**settings, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return kind(**settings)


def _plain(settings: Any) -> dict[str, Any]:
    """A dataclass as a dict that survives JSON unchanged."""
    values = asdict(settings)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _without(settings: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """A nested dict without these keys (the source of loading, and classifier labels)."""
    return {
        key: _without(value, names) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in names
    }


_NANO_VISION = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "image_size": 64,
    "patch_size": 8,
}
_NANO_TEXT = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "vocab_size": 4096,
    "max_position_embeddings": 64,
}
