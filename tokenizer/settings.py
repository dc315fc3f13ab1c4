"""The tokenizer's settings, for Python, `tokenizer.model` of a recipe, and config.json.

Every dataclass raises UserError for values out of the ranges of its fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..common.errors import UserError, shown
from ..common.limits import limited, settings_from, validate
from .precision import EncodePrecision
from .resizing import GREY, Resample, ResizeMode, pad_colour_of


@dataclass(frozen=True)
class QuantizerConfig:
    """One residual quantizer.

    Args:
        num_codes: vectors per codebook.
        code_dim: dimension of the vectors.
        depth: codes per position.
        shared_codebook: one codebook for all depths (the released models) or one for each depth.
        decay: of the exponential moving averages that train the codebook.
        restart_unused_codes: replace codes whose moving count is below `restart_threshold` x the mean count
            by current inputs, sampled in proportion to their quantization error, every `restart_every`
            updates.
        update_each_depth: for a shared codebook, update after every depth, so that deeper levels already see
            the updated vectors (as in the released pixel quantizer); otherwise once after all depths.
    """

    num_codes: int = limited(least=1, most=1 << 24)
    code_dim: int = limited(least=1, most=1 << 16)
    depth: int = limited(least=1, most=64)
    shared_codebook: bool = True
    decay: float = limited(0.99, least=0.0, below=1.0)
    restart_unused_codes: bool = True
    restart_every: int = limited(40, least=1, most=10**9)
    restart_threshold: float = limited(0.03, least=0.0)
    update_each_depth: bool = False

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True)
class DecoderConfig:
    """The VQGAN-style pixel decoder.

    Args:
        latent_size: side of the square latent that the codes' grid is resized to.
        in_channels: channels of that latent.
        ch, ch_mult: base width and its multiple at each resolution, finest first; the side doubles between
            two of them.
        num_res_blocks: residual blocks per resolution, minus one.
        attn_resolutions: sides at which each residual block is followed by self-attention.
        norm_groups: groups of every group norm (32 in the released models); it has to divide all widths.
        patch_skip: add a linear map of each position to its pixels (not in the released models). A small
            decoder then learns colours and edges within hundreds of steps instead of thousands.
    """

    latent_size: int = limited(least=1, most=1 << 16)
    in_channels: int = limited(least=1, most=1 << 16)
    ch: int = limited(least=1, most=1 << 16)
    ch_mult: tuple[int, ...] = limited(least=1, most=1 << 16)
    num_res_blocks: int = limited(1, least=0, most=256)
    attn_resolutions: tuple[int, ...] = limited((), least=0, most=1 << 16)
    norm_groups: int = limited(32, least=1, most=1 << 16)
    out_channels: int = limited(3, least=1, most=1 << 16)
    patch_skip: bool = False

    def __post_init__(self) -> None:
        for name in ("ch_mult", "attn_resolutions"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple):
                raise UserError(f"{name} is {shown(value)}; give a list")
            object.__setattr__(self, name, tuple(value))
        if not 1 <= len(self.ch_mult) <= 12:
            raise UserError(
                f"ch_mult is {shown(self.ch_mult)}; give one multiple for each of 1 to 12 resolutions, e.g. "
                "[1, 2, 4]"
            )
        validate(self)

    @property
    def resolution(self) -> int:
        """Side of the decoded image."""
        return self.latent_size * 2 ** (len(self.ch_mult) - 1)


SMALL_QUANTIZER = QuantizerConfig(num_codes=512, code_dim=32, depth=4, shared_codebook=False)
SMALL_DECODER = DecoderConfig(
    latent_size=8, in_channels=64, ch=32, ch_mult=(1, 1, 2, 4), num_res_blocks=1, attn_resolutions=(8,)
)


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings of a new tokenizer around a given SigLIP backbone.

    Args:
        pixel_layer, semantic_layer, shortcut_layer: the number of encoder layers after which the hidden
            states are taken (1 = output of the first layer, 0 = the patch embeddings). The shortcut, times
            `shortcut_weight`, is added to the pixel features before quantization; None: no shortcut.
        pixel_quantizer, semantic_quantizer, decoder: default: a small model for 64 x 64 images.
        causal_post_projection: the projections after the quantizers attend in raster order (true for the
            released models).
        shared_quantizer: for ablations, one projection and one quantizer for both branches, so that pixel and
            semantic codes are equal; both branches must use the same layer, without a shortcut.
        separate_encoders: for ablations, a separate copy of the shallow encoder layers for the pixel branch,
            so that the branches share only the image.
        encode_precision: arithmetic of the encoder when it makes codes, on every device and under any
            autocast: fp32 without TF32; "tf32" allows TF32 on CUDA, "bf16" computes under autocast. Both are
            faster on GPUs and change codes. The search for the nearest code is always in fp32.
        resize_mode: how images become square. "squash" changes the aspect ratio, as SigLIP does; "crop"
            resizes the shorter side and keeps the central square, as the released tokenizers do; "pad"
            resizes the longer side and adds bars.
        resample: the filter of resizing: bicubic, bilinear, lanczos, box or nearest.
        pad_colour: red, green and blue of the bars, 0 to 255; grey is zero after normalisation.

    Raises:
        UserError: a value outside its range, or one that contradicts another; the message names the field.
    """

    pixel_layer: int = limited(2, least=0, most=4096)
    semantic_layer: int = limited(5, least=0, most=4096)
    shortcut_layer: int | None = limited(1, least=0, most=4096)
    shortcut_weight: float = limited(0.6, least=-1e6, most=1e6)
    pixel_quantizer: QuantizerConfig | None = None
    semantic_quantizer: QuantizerConfig | None = None
    decoder: DecoderConfig | None = None
    causal_post_projection: bool = True
    shared_quantizer: bool = False
    separate_encoders: bool = False
    encode_precision: EncodePrecision = "fp32"
    resize_mode: ResizeMode = "squash"
    resample: Resample = "bicubic"
    pad_colour: tuple[int, int, int] = limited(GREY, least=0, most=255)

    def __post_init__(self) -> None:
        self._make_typed("pixel_quantizer", SMALL_QUANTIZER)
        self._make_typed("semantic_quantizer", SMALL_QUANTIZER)
        self._make_typed("decoder", SMALL_DECODER)
        object.__setattr__(self, "pad_colour", pad_colour_of(self.pad_colour))
        validate(self)
        if self.semantic_layer < max(self.pixel_layer, self.shortcut_layer or 0):
            raise UserError(
                f"semantic_layer {self.semantic_layer} is shallower than pixel_layer {self.pixel_layer} or "
                f"shortcut_layer {self.shortcut_layer}; tap the semantic codes last"
            )
        if self.shared_quantizer:
            self._check_shared_quantizer()

    def _make_typed(self, name: str, default: Any) -> None:
        """Replace a mapping by a settings object, None or an empty mapping by the default."""
        given = getattr(self, name)
        missing = given is None or (isinstance(given, Mapping) and not given)
        typed = default if missing else settings_from(type(default), given, name)
        object.__setattr__(self, name, typed)

    def _check_shared_quantizer(self) -> None:
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
