"""The dual tokenizer: one SigLIP, pixel codes from a shallow layer, semantic codes from a deep one."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, SiglipConfig, SiglipModel
from transformers import initialization as init
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings
from transformers.utils import ModelOutput

from ..common.errors import UserError, first_line, shown
from ..common.loading.bounded_settings import most_layers
from ..common.loading.model_files import check_model_files
from ..common.loading.quiet import quiet, size_of, size_of_model
from ..common.loading.strict import (
    check_loading_info,
    load_exactly,
    load_siglip,
    save_whole,
    tokenizer_source,
)
from ..common.loading.weight_files import HUB_OPTIONS, refuse_bigger, refuse_bigger_than, weight_files
from ..common.machine import suitable_threads
from ..common.paths import user_path
from ..common.values import seed_number
from .backbone import ShallowEncoder, TappedSiglip
from .configuration import DualTokenizerConfig
from .loading import check_is_tokenizer
from .official import read_official
from .pixel_decoder import PixelDecoder
from .processing import DualTokenizerImageProcessor
from .projection import AttentionProjection
from .quantizer.residual_vq import QuantizerOutput, ResidualQuantizer


@dataclass
class VisualCodes:
    """The codes of a batch of images: pixel and semantic, each (B, H, W, D) int64."""

    pixel: Tensor
    semantic: Tensor

    def to(self, device: torch.device | str) -> VisualCodes:
        """The same codes on another device."""
        return VisualCodes(self.pixel.to(device), self.semantic.to(device))


@dataclass
class DualTokenizerOutput(ModelOutput):
    """What one pass over images gives.

    codes: VisualCodes. reconstruction: (B, 3, S, S) in the processor's range, or None when not asked for.
    pixel_commitment_loss, semantic_commitment_loss: fp32 scalars; of a shared quantizer the first has it all.
    semantic_features: (B, N, hidden), the projected semantic codes that replace the hidden states.
    pooled: (B, hidden), the image embedding made from them, not normalised.
    pixel_latents, semantic_latents: (B, H, W, C), what the quantizers were given.
    hidden_states: only if asked for: patch embeddings, then the output of every layer (at the semantic layer:
    before quantization).
    """

    codes: VisualCodes | None = None
    reconstruction: Tensor | None = None
    pixel_commitment_loss: Tensor | None = None
    semantic_commitment_loss: Tensor | None = None
    semantic_features: Tensor | None = None
    pooled: Tensor | None = None
    pixel_latents: Tensor | None = None
    semantic_latents: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class DualTokenizer(PreTrainedModel):
    """Encode images into pixel and semantic codes, decode pixel codes into images, embed images and texts.

    Method of DualToken (arXiv 2503.14324): reconstruction is learned on a shallow layer and meaning on a
    deep one, each with its own residual quantizer, so that the two aims do not disturb each other.
    """

    config: DualTokenizerConfig
    config_class = DualTokenizerConfig
    base_model_prefix = "tokenizer"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["SiglipEncoderLayer", "AttentionProjection", "Level"]
    _keep_in_fp32_modules_strict = ["codebooks"]

    def __init__(self, config: DualTokenizerConfig) -> None:
        super().__init__(config)
        pixel, semantic = config.pixel_quantizer, config.semantic_quantizer
        hidden, causal = config.hidden_size, config.causal_post_projection
        siglip = SiglipConfig(vision_config=config.vision_config, text_config=config.text_config)
        self.backbone = TappedSiglip(siglip)
        self.pixel_encoder = (
            ShallowEncoder(self.backbone, self._shallow_layers) if config.separate_encoders else None
        )
        if not config.shared_quantizer:
            self.pixel_projection = AttentionProjection(hidden, pixel.code_dim)
        has_shortcut = config.shortcut_layer is not None
        self.shortcut_projection = AttentionProjection(hidden, pixel.code_dim) if has_shortcut else None
        self.semantic_projection = AttentionProjection(hidden, semantic.code_dim)
        if not config.shared_quantizer:
            self.pixel_quantizer = ResidualQuantizer(pixel)
        self.semantic_quantizer = ResidualQuantizer(semantic)
        if config.shared_quantizer:
            # Second names, past nn.Module: registered twice they would be saved and counted twice.
            self.__dict__["pixel_projection"] = self.semantic_projection
            self.__dict__["pixel_quantizer"] = self.semantic_quantizer
        self.pixel_post_projection = AttentionProjection(pixel.code_dim, hidden, causal)
        self.semantic_post_projection = AttentionProjection(semantic.code_dim, hidden, causal)
        self.pixel_decoder = PixelDecoder(config.decoder, hidden)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        return_hidden_states: bool = False,
        reconstruct: bool = True,
        num_semantic: int | None = None,
        **_: Any,
    ) -> DualTokenizerOutput:
        """Encode, quantize, decode and pool normalised images (B, 3, S, S). See `DualTokenizerOutput`.

        In training mode this moves the codebooks. `reconstruct=False` leaves out the pixel decoder. With
        `num_semantic` only the first so many images go through the semantic branch and the deeper layers,
        which saves most of the encoder's time while the pixel branch learns from all of them.
        """
        shallow = self._pixel_states(pixel_values)
        pixel_latents = self.pixel_features(shallow)
        pixel = self.pixel_quantizer(pixel_latents)
        if self.config.separate_encoders:
            states = self._encode_states(pixel_values[:num_semantic])
        else:
            states = [state[:num_semantic] for state in shallow]
            states += self.backbone.run_layers(states[-1], self._shallow_layers, self.config.semantic_layer)
        if self.config.shared_quantizer:
            # Quantized once: a second pass would count every vector twice.
            semantic_latents = pixel_latents[:num_semantic]
            semantic = _first_images(pixel, num_semantic)
        else:
            semantic_latents = self.semantic_features(states)
            semantic = self.semantic_quantizer(semantic_latents)
        features = self.semantic_post_projection(semantic.quantized.flatten(1, 2))
        rest = self.backbone.run_layers(features, self.config.semantic_layer, self._num_layers)
        pooled = self.backbone.pool(rest[-1] if rest else features)
        return DualTokenizerOutput(
            codes=VisualCodes(pixel.codes, semantic.codes),
            reconstruction=self._decode_features(pixel.quantized) if reconstruct else None,
            pixel_commitment_loss=pixel.commitment_loss,
            semantic_commitment_loss=semantic.commitment_loss,
            semantic_features=features,
            pooled=pooled,
            pixel_latents=pixel_latents,
            semantic_latents=semantic_latents,
            hidden_states=tuple(states + rest) if return_hidden_states else None,
        )

    @torch.no_grad()
    def encode(self, pixel_values: Tensor | Any) -> VisualCodes:
        """Normalised images (B, 3, S, S) -> codes. Never moves the codebooks.

        Images as users have them (PIL, a path, a list of these) are resized and normalised first, as
        `DualTokenizerImageProcessor` does it for this tokenizer's size.
        """
        pixel_values = self._pixel_values(pixel_values)
        with self._suitable_threads(pixel_values):
            states = self._encode_states(pixel_values)
            shallow = self._pixel_states(pixel_values) if self.config.separate_encoders else states
            return VisualCodes(
                pixel=self.pixel_quantizer.encode(self.pixel_features(shallow)),
                semantic=self.semantic_quantizer.encode(self.semantic_features(states)),
            )

    def decode(self, pixel_codes: Tensor | VisualCodes | Any) -> Tensor:
        """Pixel codes (B, H, W, D), or what `encode` gave -> images (B, 3, S, S) in the processor's range,
        not clamped.

        Raises:
            UserError: codes of another shape, or that this codebook does not have.
        """
        pixel_codes = self._pixel_codes(pixel_codes)
        expected = (*self.config.grid_size, self.config.pixel_quantizer.depth)
        if pixel_codes.dim() != 4 or tuple(pixel_codes.shape[1:]) != expected:
            raise UserError(
                f"pixel codes have shape {tuple(pixel_codes.shape)}; this tokenizer decodes (batch, "
                f"{', '.join(map(str, expected))})"
            )
        count = self.config.pixel_quantizer.num_codes
        if pixel_codes.numel() and not bool(((pixel_codes >= 0) & (pixel_codes < count)).all()):
            raise UserError(
                f"pixel codes go from {int(pixel_codes.min())} to {int(pixel_codes.max())}; this "
                f"tokenizer has the codes 0 to {count - 1}"
            )
        with self._suitable_threads(pixel_codes):
            return self._decode_features(self.pixel_quantizer.embed(pixel_codes.long()))

    def get_image_features(self, pixel_values: Tensor | Any) -> Tensor:
        """Images (B, 3, S, S), or as `encode` takes them -> embeddings (B, E) made from their semantic codes,
        not normalised.
        """
        pixel_values = self._pixel_values(pixel_values)
        with self._suitable_threads(pixel_values):
            states = self._encode_states(pixel_values)
            semantic = self._quantize_semantics(states)
            features = self.semantic_post_projection(semantic.quantized.flatten(1, 2))
            rest = self.backbone.run_layers(features, self.config.semantic_layer, self._num_layers)
            return self.backbone.pool(rest[-1] if rest else features)

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """Token ids (B, L), padded to the full text length -> embeddings (B, E), not normalised."""
        self._check_ids(input_ids)
        with self._suitable_threads(input_ids):
            return self.backbone.embed_text(input_ids)

    def set_quantization(self, enabled: bool) -> None:
        """Switch both quantizers on or off; off, features pass unchanged (a warm-up before k-means)."""
        self.pixel_quantizer.enabled = enabled
        self.semantic_quantizer.enabled = enabled

    def pixel_features(self, hidden_states: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Hidden states (from the patch embeddings on) -> input of the pixel quantizer (B, H, W, C)."""
        features = self.pixel_projection(hidden_states[self.config.pixel_layer])
        if self.shortcut_projection is not None and self.config.shortcut_layer is not None:
            shortcut = self.shortcut_projection(hidden_states[self.config.shortcut_layer])
            features = features + self.config.shortcut_weight * shortcut
        return features.unflatten(1, self.config.grid_size)

    def semantic_features(self, hidden_states: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
        """Hidden states (from the patch embeddings on) -> input of the semantic quantizer (B, H, W, C)."""
        features = self.semantic_projection(hidden_states[self.config.semantic_layer])
        return features.unflatten(1, self.config.grid_size)

    @torch.no_grad()
    def initialise_codebooks(self, pixel_values: Tensor, seed: int = 0) -> None:
        """k-means both quantizers on the features of images (B, 3, S, S); every process has to call this."""
        seed = seed_number(seed)
        states = self._encode_states(pixel_values)
        if not self.config.shared_quantizer:
            shallow = self._pixel_states(pixel_values) if self.config.separate_encoders else states
            self.pixel_quantizer.initialise_from(self.pixel_features(shallow), seed)
        self.semantic_quantizer.initialise_from(self.semantic_features(states), seed)

    def _suitable_threads(self, batch: Tensor) -> AbstractContextManager[None]:
        return suitable_threads(self, len(batch) * math.prod(self.config.grid_size))

    @property
    def _num_layers(self) -> int:
        return self.config.vision_config.num_hidden_layers

    @property
    def _shallow_layers(self) -> int:
        """Layers that the pixel branch needs."""
        return max(self.config.pixel_layer, self.config.shortcut_layer or 0)

    def _pixel_states(self, pixel_values: Tensor) -> list[Tensor]:
        """Images -> patch embeddings and the output of each layer that the pixel branch needs."""
        if self.pixel_encoder is None:
            return self._encode_states(pixel_values, self._shallow_layers)
        self._check_images(pixel_values)
        return self.pixel_encoder(pixel_values)

    def _encode_states(self, pixel_values: Tensor, stop: int | None = None) -> list[Tensor]:
        """Images -> patch embeddings and the output of each layer up to `stop` (or the semantic one)."""
        self._check_images(pixel_values)
        patches = self.backbone.embed_patches(pixel_values)
        return [
            patches,
            *self.backbone.run_layers(patches, 0, self.config.semantic_layer if stop is None else stop),
        ]

    def _pixel_values(self, images: Any) -> Tensor:
        """Tensors of floating numbers, also as a processor gives them, as they are; anything else through an
        image processor of this size.
        """
        if isinstance(images, Mapping) and "pixel_values" in images:
            images = images["pixel_values"]
        if isinstance(images, Tensor) and images.dim() and images.is_floating_point():
            return images
        processor = DualTokenizerImageProcessor(size=self.config.image_size)
        return processor(images, return_tensors="pt")["pixel_values"].to(self.device, self.dtype)

    def _pixel_codes(self, codes: Any) -> Tensor:
        """Codes as a tensor of whole numbers on this device; UserError for anything else."""
        given = codes.pixel if isinstance(codes, VisualCodes) else codes
        try:
            tensor = given if isinstance(given, Tensor) else torch.from_numpy(np.asarray(given))
        except (TypeError, ValueError):
            raise UserError(f"pixel codes are {shown(codes)}; give a tensor of whole numbers") from None
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise UserError(f"pixel codes are {tensor.dtype}; give whole numbers, as encode(images) returns")
        return tensor.to(self.device)

    def _check_images(self, pixel_values: Tensor) -> None:
        side = self.config.image_size
        if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
            kind = pixel_values.dtype if isinstance(pixel_values, Tensor) else type(pixel_values).__name__
            raise UserError(
                f"pixel_values are given as {kind}; make them of images by "
                'DualTokenizerImageProcessor: processor(images)["pixel_values"]'
            )
        if pixel_values.layout != torch.strided or pixel_values.is_meta != (self.device.type == "meta"):
            raise UserError("pixel_values are a sparse tensor, or one without values; give a plain one")
        if pixel_values.dim() != 4 or 0 in pixel_values.shape or pixel_values.shape[1:] != (3, side, side):
            raise UserError(
                f"pixel_values have shape {tuple(pixel_values.shape)}; this tokenizer reads (batch, 3, "
                f"{side}, {side}), as DualTokenizerImageProcessor makes them"
            )
        # In training the loss tells, without waiting for the device.
        if not self.training and not bool(torch.isfinite(pixel_values).all()):
            raise UserError(
                "pixel_values hold infinite numbers or NaN; check what the images were normalised with"
            )

    def _check_ids(self, input_ids: Tensor) -> None:
        """UserError for what are no token ids of the text side."""
        text = self.config.text_config
        longest, count = text.max_position_embeddings, text.vocab_size
        if not isinstance(input_ids, Tensor) or input_ids.dtype not in (torch.int32, torch.int64):
            given = shown(input_ids)
            raise UserError(f"input_ids are {given}; give a tensor of token ids (batch, {longest})")
        if input_ids.dim() != 2 or not input_ids.numel() or input_ids.shape[1] > longest:
            raise UserError(
                f"input_ids have shape {tuple(input_ids.shape)}; this tokenizer reads (batch, {longest})"
            )
        least, most = int(input_ids.min()), int(input_ids.max())
        if least < 0 or most >= count:
            raise UserError(
                f"input_ids go from {least} to {most}; the text side has the ids 0 to {count - 1}"
            )

    def _quantize_semantics(self, states: list[Tensor]) -> QuantizerOutput:
        return self.semantic_quantizer(self.semantic_features(states))

    def _decode_features(self, quantized: Tensor) -> Tensor:
        """Quantized pixel features (B, H, W, C) -> images (B, 3, S, S)."""
        tokens = quantized.flatten(1, 2).to(self.pixel_post_projection.skip.weight.dtype)
        hidden = self.pixel_post_projection(tokens)
        return self.pixel_decoder(hidden.transpose(1, 2).unflatten(2, self.config.grid_size))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # torch's own initialisation suits these convolutions and projections; transformers' normal(0, 0.02)
        # does not.
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SiglipVisionEmbeddings):
            # In the backbone SigLIP sees to it; such a buffer is in no file.
            init.copy_(module.position_ids, torch.arange(module.num_positions).expand(1, -1))
        elif isinstance(module, ResidualQuantizer):
            module.reset_health()

    @classmethod
    def from_backbone(
        cls, backbone: str | os.PathLike[str] | SiglipModel, config: DualTokenizerConfig
    ) -> DualTokenizer:
        """A tokenizer with new quantizers and decoder around a pre-trained SigLIP.

        backbone: a SiglipModel, or a folder or hub id of one. UserError if its weights do not fit `config`.
        """
        siglip = backbone if isinstance(backbone, SiglipModel) else load_siglip(backbone)
        model = cls(config)
        hint = "the SigLIP backbone does not fit the configuration; copy its vision_config and text_config"
        load_exactly(model.backbone, siglip.state_dict(), hint)
        if model.pixel_encoder is not None:
            model.pixel_encoder.copy_from(model.backbone)
        return model

    @classmethod
    def from_official(
        cls,
        checkpoint: str | os.PathLike[str],
        config: str | os.PathLike[str],
        backbone_config: str | os.PathLike[str] | SiglipConfig | None = None,
        causal: bool = True,
    ) -> DualTokenizer:
        """Load a released research checkpoint (`.pt` or `.safetensors`) with its `config.json`.

        backbone_config: folder, file or hub id of the SigLIP configuration; default: what the config names,
        looked for beside the config file and then on the hub. causal: whether the projections behind the
        quantizers were trained causally, as those of the released models were; nothing in the files tells.
        UserError names missing or left-over weights.
        """
        files = user_path(checkpoint, "checkpoint"), user_path(config, "config")
        official = read_official(*files, backbone_config, causal)
        state = official.state_dict
        layers, numbers = most_layers(official.config.to_dict()), sum(one.numel() for one in state.values())
        refuse_bigger_than(lambda: cls(official.config), layers, len(state), numbers, str(checkpoint))
        model = cls(official.config)
        what = f"weights in {str(checkpoint)!r} do not match the configuration"
        load_exactly(model, state, what)
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load from a folder, a hub id or "nano", in eval mode, as transformers does, but strictly and in
        fp32.

        The weights' own format does not matter: codes computed in bf16 are other codes (at the fourth level,
        a quarter of them). Pass `dtype` for another one.

        Raises UserError for something that is no tokenizer, and for missing, unexpected or misshapen weights.
        """
        asked_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("dtype", torch.float32)
        kwargs |= {"trust_remote_code": False, "use_safetensors": True}
        source = tokenizer_source(pretrained_model_name_or_path)
        check_model_files(source, kwargs.get("subfolder"))
        if kwargs.get("config") is None:
            check_is_tokenizer(source, kwargs)
        hub = {key: kwargs[key] for key in HUB_OPTIONS if key in kwargs}
        files = weight_files(source, hub, "a tokenizer")
        if kwargs.get("config") is None:
            config = DualTokenizerConfig.from_pretrained(source, **hub)
            refuse_bigger(lambda: cls(config), most_layers(config.to_dict()), files, source)
        try:
            with quiet(size_of(files.values())):
                loaded: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        except UserError:
            raise
        except (OSError, RuntimeError, ImportError, SafetensorError) as error:
            raise UserError(f"cannot load a tokenizer from {source!r}: {first_line(error)}") from error
        model, info = loaded
        check_loading_info(info, source)
        return (model, info) if asked_info else model

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Save config.json and safetensors weights; other files of the folder stay, stale weights do not."""
        save = super().save_pretrained
        with quiet(size_of_model(self)):
            save_whole(lambda folder: save(folder, **kwargs), save_directory)


def _first_images(quantized: QuantizerOutput, count: int | None) -> QuantizerOutput:
    """The output of the first `count` images (None: of all), without the loss, which is counted already."""
    nothing = torch.zeros_like(quantized.commitment_loss)
    return QuantizerOutput(quantized.quantized[:count], quantized.codes[:count], nothing)
