"""Configuration of the dual tokenizer: backbone, layer taps, two quantizers, pixel decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

from transformers import PreTrainedConfig, SiglipTextConfig, SiglipVisionConfig

from ..common.errors import UserError, shown
from ..common.loading.checked_config import CheckedConfig
from ..common.values import finite_number, flag, whole_number

Settings = TypeVar("Settings", bound="QuantizerConfig | DecoderConfig")


@dataclass(frozen=True)
class QuantizerConfig:
    """One residual quantizer.

    num_codes: vectors per codebook. code_dim: their length. depth: codes per position.
    shared_codebook: one codebook for all depths (the released models) or one for each depth.
    decay: of the exponential moving averages that train the codebook.
    restart_unused_codes: replace codes whose moving count is below `restart_threshold` x the mean count by
    current inputs, drawn in proportion to their quantization error, every `restart_every` updates.
    update_each_depth: for a shared codebook, update after every depth, so that deeper levels already see the
    moved vectors (what the released pixel quantizer does); otherwise once after all depths.
    """

    num_codes: int
    code_dim: int
    depth: int
    shared_codebook: bool = True
    decay: float = 0.99
    restart_unused_codes: bool = True
    restart_every: int = 40
    restart_threshold: float = 0.03
    update_each_depth: bool = False

    def __post_init__(self) -> None:
        limits = {"num_codes": 1 << 24, "code_dim": 1 << 16, "depth": 64, "restart_every": None}
        for name, most in limits.items():
            whole_number(getattr(self, name), f"quantizer setting {name}", 1, most)
        finite_number(self.decay, "quantizer setting decay", 0.0, below=1.0)
        finite_number(self.restart_threshold, "quantizer setting restart_threshold", 0.0)
        for name in ("shared_codebook", "restart_unused_codes", "update_each_depth"):
            flag(getattr(self, name), f"quantizer setting {name}")


@dataclass(frozen=True)
class DecoderConfig:
    """The VQGAN-style pixel decoder.

    latent_size: side of the square latent the codes' grid is resized to. in_channels: channels of that
    latent. ch, ch_mult: base width and its multiple at each resolution, finest first; the side doubles
    between two of them. num_res_blocks: residual blocks per resolution, beside the one that is always there.
    attn_resolutions: sides at which each residual block is followed by self-attention.
    norm_groups: groups of every group norm (32 in the released models); it has to divide all widths.
    patch_skip: add to the image what one linear map makes of each position by itself (the released models
    have none). A small decoder then has colours and edges within hundreds of steps instead of thousands.
    """

    latent_size: int
    in_channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int = 1
    attn_resolutions: tuple[int, ...] = ()
    norm_groups: int = 32
    out_channels: int = 3
    patch_skip: bool = False

    def __post_init__(self) -> None:
        for name in ("ch_mult", "attn_resolutions"):
            if not isinstance(getattr(self, name), list | tuple):
                raise UserError(f"decoder setting {name} is {shown(getattr(self, name))}; give a list")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not 1 <= len(self.ch_mult) <= 12:
            raise UserError(
                f"decoder setting ch_mult is {shown(self.ch_mult)}; give one multiple for each of 1 to 12 "
                "resolutions, e.g. [1, 2, 4]"
            )
        for name in ("latent_size", "in_channels", "ch", "norm_groups", "out_channels", "ch_mult"):
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else [value]:
                whole_number(number, f"decoder setting {name}", 1, 1 << 16)
        whole_number(self.num_res_blocks, "decoder setting num_res_blocks", 0, 256)
        for side in self.attn_resolutions:
            whole_number(side, "decoder setting attn_resolutions", 0, 1 << 16)
        flag(self.patch_skip, "decoder setting patch_skip")

    @property
    def resolution(self) -> int:
        """Side of the decoded image."""
        return self.latent_size * 2 ** (len(self.ch_mult) - 1)


def settings_from(kind: type[Settings], given: Mapping[str, Any] | Settings, where: str) -> Settings:
    """Build `kind` from a dict; unknown and missing keys are a UserError that names them."""
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise UserError(f"{where} is {shown(given)}; give its settings by name")
    allowed = {field.name for field in fields(kind)}
    unknown = sorted(set(given) - allowed)
    if unknown:
        raise UserError(f"unknown {where} settings {unknown}; allowed are {sorted(allowed)}")
    try:
        return kind(**given)
    except TypeError as error:
        raise UserError(f"incomplete {where} settings {sorted(given)}: {error}") from None


def _given(value: Any, default: Mapping[str, Any]) -> Any:
    """`value`, or `default` where nothing is set."""
    return default if value is None or (isinstance(value, Mapping) and not value) else value


def _plain(settings: QuantizerConfig | DecoderConfig) -> dict[str, Any]:
    """As a dict that JSON gives back unchanged (tuples become lists)."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()
    }


NANO_QUANTIZER = {"num_codes": 512, "code_dim": 32, "depth": 4, "shared_codebook": False}
NANO_DECODER = {
    "latent_size": 8,
    "in_channels": 64,
    "ch": 32,
    "ch_mult": [1, 1, 2, 4],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
}


class DualTokenizerConfig(CheckedConfig):
    """Configuration of `DualTokenizer`.

    vision_config, text_config: fields of `SiglipVisionConfig` / `SiglipTextConfig` (a dict or an object).
    pixel_layer, semantic_layer, shortcut_layer: the number of encoder layers after which the hidden states
    are taken (1 = output of the first layer, 0 = the patch embeddings). The shortcut, times
    `shortcut_weight`, is added to the pixel features before quantization; None means there is none.
    pixel_quantizer, semantic_quantizer: fields of `QuantizerConfig`. decoder: fields of `DecoderConfig`.
    causal_post_projection: the projections behind the quantizers attend in raster order (true for the
    released models).
    shared_quantizer: for ablations, one projection and one quantizer serve both branches, so that pixel and
    semantic codes are the same codes; both branches then tap one layer, without a shortcut.
    separate_encoders: for ablations, the pixel branch has shallow encoder layers of its own, which start as
    copies of the backbone's; nothing but the image is then shared by the branches.

    Raises UserError for settings that do not fit together. Defaults are a small model for 64 x 64 images.
    """

    model_type = "dualtoken_tokenizer"
    packaged_folder = "visual_tokenizer"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "vision_config": SiglipVisionConfig,
        "text_config": SiglipTextConfig,
    }

    # Any, because these are given as dicts, as objects or not at all, and are never None afterwards.
    vision_config: Any = None
    text_config: Any = None
    pixel_layer: int = 2
    semantic_layer: int = 5
    shortcut_layer: int | None = 1
    shortcut_weight: float = 0.6
    pixel_quantizer: Any = None
    semantic_quantizer: Any = None
    decoder: Any = None
    causal_post_projection: bool = True
    shared_quantizer: bool = False
    separate_encoders: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _siglip_part(SiglipVisionConfig, self.vision_config, _NANO_VISION)
        self.text_config = _siglip_part(SiglipTextConfig, self.text_config, _NANO_TEXT)
        self.pixel_quantizer = _plain(
            settings_from(QuantizerConfig, _given(self.pixel_quantizer, NANO_QUANTIZER), "pixel_quantizer")
        )
        self.semantic_quantizer = _plain(
            settings_from(
                QuantizerConfig, _given(self.semantic_quantizer, NANO_QUANTIZER), "semantic_quantizer"
            )
        )
        if not isinstance(self.decoder, Mapping | None):
            raise UserError(f"decoder is {shown(self.decoder)}; give its settings by name")
        decoder = dict(self.decoder or NANO_DECODER)
        decoder.pop("resolution", None)  # follows from the latent and the number of levels
        self.decoder = _plain(settings_from(DecoderConfig, decoder, "decoder"))
        super().__post_init__(**kwargs)
        self._check()

    def to_diff_dict(self) -> dict[str, Any]:
        """Every setting: a saved tokenizer must not change with the defaults of another version."""
        return _without(self.to_dict(), {"_name_or_path", "id2label", "label2id", "problem_type"})

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """SigLIP's text tower; transformers would take `decoder` for a second text model."""
        return self.text_config

    def _check(self) -> None:
        """Raise UserError for parts that contradict each other."""
        self._check_backbone()
        layers = self.vision_config.num_hidden_layers
        for name in ("pixel_layer", "semantic_layer", "shortcut_layer"):
            layer = getattr(self, name)
            if layer is None and name == "shortcut_layer":
                continue
            number = whole_number(layer, name)
            if number > layers:
                raise UserError(
                    f"{name} is {number}; the backbone has {layers} layers, so give 0 to {layers}"
                )
        finite_number(self.shortcut_weight, "shortcut_weight")
        if self.semantic_layer < max(self.pixel_layer, self.shortcut_layer or 0):
            raise UserError(
                f"semantic_layer {self.semantic_layer} is shallower than pixel_layer {self.pixel_layer} or "
                f"shortcut_layer {self.shortcut_layer}; tap the semantic codes last"
            )
        self._check_variants()
        resolution = settings_from(DecoderConfig, self.decoder, "decoder").resolution
        if resolution != self.image_size:
            raise UserError(
                f"the decoder makes {resolution} px images (latent_size x 2^(levels-1)) but the backbone "
                f"reads {self.image_size} px; change decoder latent_size or ch_mult"
            )
        for name in ("pixel_quantizer", "semantic_quantizer"):
            code_dim = getattr(self, name)["code_dim"]
            if self.hidden_size % code_dim:
                raise UserError(
                    f"{name} code_dim {code_dim} does not divide the backbone's width {self.hidden_size}"
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
        for name in ("causal_post_projection", "shared_quantizer", "separate_encoders"):
            flag(getattr(self, name), name)

    def _check_variants(self) -> None:
        if not self.shared_quantizer:
            return
        if self.separate_encoders:
            raise UserError(
                "shared_quantizer and separate_encoders exclude each other: one quantizer needs one encoder"
            )
        if self.pixel_layer != self.semantic_layer or self.shortcut_layer is not None:
            raise UserError(
                f"shared_quantizer needs both branches at one layer and no shortcut; pixel_layer is "
                f"{self.pixel_layer}, semantic_layer {self.semantic_layer}, shortcut_layer "
                f"{self.shortcut_layer} (give null)"
            )
        if self.pixel_quantizer != self.semantic_quantizer:
            raise UserError("shared_quantizer needs equal settings in pixel_quantizer and semantic_quantizer")

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
        """Rows and columns of the code map; pixels beyond a whole number of patches are not seen."""
        side = self.vision_config.image_size // self.vision_config.patch_size
        return side, side

    @property
    def num_positions(self) -> int:
        """Positions of the code map."""
        rows, columns = self.grid_size
        return rows * columns


def _siglip_part(kind: type[PreTrainedConfig], given: Any, default: dict[str, Any]) -> PreTrainedConfig:
    """`given` as a config object of `kind`; None gives the defaults of the small model."""
    if isinstance(given, kind):
        return given
    if isinstance(given, PreTrainedConfig):
        given = given.to_dict()
    if not isinstance(given, Mapping | None):
        raise UserError(f"{kind.base_config_key} is {shown(given)}; give its settings by name")
    settings = dict(default if given is None else given)
    if kind is SiglipTextConfig:
        # SigLIP's text tower never reads them, and transformers' defaults lie outside small vocabularies.
        settings = {**settings, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return kind(**settings)


def _without(settings: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """A nested dict without the keys of these names (where it was loaded from, and classifier labels)."""
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
