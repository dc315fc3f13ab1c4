"""The dual tokenizer: one SigLIP, pixel codes from a shallow layer, semantic codes from a deep one."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, SiglipConfig, SiglipModel
from transformers import initialization as init
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from ..common.loading.hub_upload import UploadedWhole
from ..common.loading.quiet import quiet, size_of_model
from ..common.loading.strict import load_exactly, load_siglip, save_whole
from ..common.machine import suitable_threads
from ..common.values import seed_number
from .backbone import ShallowEncoder, TappedSiglip
from .configuration import DualTokenizerConfig
from .inputs import check_images, check_text_ids, codes_to_decode, images_to_pixels
from .loading import load_official, load_tokenizer
from .outputs import DualTokenizerOutput, VisualCodes
from .pixel_decoder import PixelDecoder
from .precision import encoding_in
from .projection import AttentionProjection
from .quantizer.residual_vq import QuantizerOutput, ResidualQuantizer

#: Aliases of modules if the branches share a quantizer; registered twice they would be saved twice.
SHARED = {"pixel_projection": "semantic_projection", "pixel_quantizer": "semantic_quantizer"}


class DualTokenizer(UploadedWhole, PreTrainedModel):  # type: ignore[misc]
    """Encode images into pixel and semantic codes, decode pixel codes into images, embed images and texts.

    Method of DualToken (arXiv 2503.14324): reconstruction is learned on a shallow layer and semantics on a
    deep one, with separate residual quantizers, so that the objectives do not conflict.
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
        self.pixel_post_projection = AttentionProjection(pixel.code_dim, hidden, causal)
        self.semantic_post_projection = AttentionProjection(semantic.code_dim, hidden, causal)
        self.pixel_decoder = PixelDecoder(config.decoder, hidden)
        self.post_init()

    def __getattr__(self, name: str) -> Any:
        second_name = name in SHARED and self.config.shared_quantizer
        return super().__getattr__(SHARED[name] if second_name else name)

    def forward(
        self,
        pixel_values: Tensor,
        return_hidden_states: bool = False,
        reconstruct: bool = True,
        num_semantic: int | None = None,
        **_: Any,
    ) -> DualTokenizerOutput:
        """Encode, quantize, decode and pool normalised images (B, 3, S, S). See `DualTokenizerOutput`.

        In training mode this updates the codebooks (see `stage_codebook_updates`). `reconstruct=False` skips
        the pixel decoder. With `num_semantic` only the first so many images go through the semantic branch
        and the deeper layers, which saves most of the encoder's time while the pixel branch learns from all.

        In eval mode the codes are those of `encode`; in training mode the precision is the program's.
        """
        with nullcontext() if self.training else self._encoding():
            shallow = self._pixel_states(pixel_values)
            pixel_latents = self.pixel_features(shallow)
            pixel = self.pixel_quantizer(pixel_latents)
            if self.config.separate_encoders:
                states = self._encode_states(pixel_values[:num_semantic])
            else:
                states = [state[:num_semantic] for state in shallow]
                states += self.backbone.run_layers(
                    states[-1], self._shallow_layers, self.config.semantic_layer
                )
            if self.config.shared_quantizer:
                # Quantized once: a second pass would count every vector twice.
                semantic_latents = pixel_latents[:num_semantic]
                semantic = _first_images(pixel, num_semantic)
            else:
                semantic_latents = self.semantic_features(states)
                semantic = self.semantic_quantizer(semantic_latents)
        features, rest, pooled = self._embed_semantic(semantic)
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
        """Normalised images (B, 3, S, S) -> codes, in `config.encode_precision`. Updates no codebook.

        Other images (PIL, a path, a list of these) are first processed by `DualTokenizerImageProcessor`.
        """
        pixel_values = images_to_pixels(self, pixel_values)
        with self._suitable_threads(pixel_values), self._encoding():
            states = self._encode_states(pixel_values)
            shallow = self._pixel_states(pixel_values) if self.config.separate_encoders else states
            return VisualCodes(
                pixel=self.pixel_quantizer.encode(self.pixel_features(shallow)),
                semantic=self.semantic_quantizer.encode(self.semantic_features(states)),
            )

    def decode(self, pixel_codes: Tensor | VisualCodes | Any) -> Tensor:
        """Codes (B, H, W, D) or VisualCodes -> images (B, 3, S, S), in the processor's range, not clamped.

        Raises:
            UserError: codes of another shape or out of range.
        """
        pixel_codes = codes_to_decode(self, pixel_codes)
        with self._suitable_threads(pixel_codes):
            return self._decode_features(self.pixel_quantizer.embed(pixel_codes.long()))

    def get_image_features(self, pixel_values: Tensor | Any) -> Tensor:
        """Images as in `encode` -> embeddings of their semantic codes (B, E), not normalised."""
        pixel_values = images_to_pixels(self, pixel_values)
        with self._suitable_threads(pixel_values):
            with self._encoding():
                states = self._encode_states(pixel_values)
                semantic = self.semantic_quantizer(self.semantic_features(states))
            return self._embed_semantic(semantic)[-1]

    def get_text_features(self, input_ids: Tensor) -> Tensor:
        """Token ids (B, L), padded to the full text length -> embeddings (B, E), not normalised."""
        check_text_ids(self.config, input_ids)
        with self._suitable_threads(input_ids):
            return self.backbone.embed_text(input_ids)

    def set_quantization(self, enabled: bool) -> None:
        """Switch both quantizers on, or off (features pass unchanged, for a warm-up before k-means)."""
        self.pixel_quantizer.enabled = enabled
        self.semantic_quantizer.enabled = enabled

    def stage_codebook_updates(self, staged: bool = True) -> None:
        """Leave the updates of the codebooks to `apply_codebook_updates`, for training with optimizer steps.

        By default every forward pass in training mode updates them. Staged, the passes of a step count as
        one, and a rejected step (a non-finite loss) leaves no trace:

        >>> tokenizer.stage_codebook_updates()
        >>> for pixel_values in micro_batches:
        ...     loss_of(tokenizer(pixel_values)).backward()
        >>> optimizer.step()
        >>> tokenizer.apply_codebook_updates()  # or discard_codebook_updates(), without the optimizer's step
        """
        self.discard_codebook_updates()
        for quantizer in self._quantizers():
            quantizer.staged = staged

    def apply_codebook_updates(self) -> None:
        """Update the codebooks by the passes since the last update; every process has to call this."""
        for quantizer in self._quantizers():
            quantizer.apply_updates()

    def discard_codebook_updates(self) -> None:
        """Drop the statistics of the passes since the last update."""
        for quantizer in self._quantizers():
            quantizer.discard_updates()

    def count_codebook_updates(self) -> None:
        """Read the number of updates from the device, so that training passes do not wait for it."""
        for quantizer in self._quantizers():
            quantizer.codebooks.updates_so_far()

    def _quantizers(self) -> list[ResidualQuantizer]:
        return [module for module in self.modules() if isinstance(module, ResidualQuantizer)]

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
        """Initialise both quantizers by k-means on images (B, 3, S, S); every process has to call this."""
        seed = seed_number(seed)
        states = self._encode_states(pixel_values)
        if not self.config.shared_quantizer:
            shallow = self._pixel_states(pixel_values) if self.config.separate_encoders else states
            self.pixel_quantizer.initialise_from(self.pixel_features(shallow), seed)
        self.semantic_quantizer.initialise_from(self.semantic_features(states), seed)

    def _suitable_threads(self, batch: Tensor) -> AbstractContextManager[None]:
        return suitable_threads(self, len(batch) * math.prod(self.config.grid_size))

    def _encoding(self) -> AbstractContextManager[None]:
        return encoding_in(self.config.encode_precision, self.device)

    @property
    def _shallow_layers(self) -> int:
        """Layers that the pixel branch needs."""
        return max(self.config.pixel_layer, self.config.shortcut_layer or 0)

    def _pixel_states(self, pixel_values: Tensor) -> list[Tensor]:
        """Images -> patch embeddings and the output of each layer that the pixel branch needs."""
        if self.pixel_encoder is None:
            return self._encode_states(pixel_values, self._shallow_layers)
        check_images(self, pixel_values)
        return self.pixel_encoder(pixel_values)

    def _encode_states(self, pixel_values: Tensor, stop: int | None = None) -> list[Tensor]:
        """Images -> patch embeddings and the output of each layer up to `stop` (or the semantic one)."""
        check_images(self, pixel_values)
        patches = self.backbone.embed_patches(pixel_values)
        stop = self.config.semantic_layer if stop is None else stop
        return [patches, *self.backbone.run_layers(patches, 0, stop)]

    def _embed_semantic(self, semantic: QuantizerOutput) -> tuple[Tensor, list[Tensor], Tensor]:
        """Projected codes (B, N, hidden), outputs of the layers after them, pooled embedding (B, hidden)."""
        tokens = semantic.quantized.flatten(1, 2).to(self.semantic_post_projection.skip.weight.dtype)
        features = self.semantic_post_projection(tokens)
        layers = self.config.vision_config.num_hidden_layers
        rest = self.backbone.run_layers(features, self.config.semantic_layer, layers)
        return features, rest, self.backbone.pool(rest[-1] if rest else features)

    def _decode_features(self, quantized: Tensor) -> Tensor:
        """Quantized pixel features (B, H, W, C) -> images (B, 3, S, S)."""
        tokens = quantized.flatten(1, 2).to(self.pixel_post_projection.skip.weight.dtype)
        hidden = self.pixel_post_projection(tokens)
        return self.pixel_decoder(hidden.transpose(1, 2).unflatten(2, self.config.grid_size))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # torch's initialisation suits these layers, unlike transformers' normal(0, 0.02).
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SiglipVisionEmbeddings):
            # SigLIP does this for the backbone; the buffer is not saved.
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
        looked for next to the config file and then on the hub. causal: whether the projections after the
        quantizers were trained causally, as those of the released models were; no file states it.
        UserError names missing or left-over weights.
        """
        return load_official(cls, checkpoint, config, backbone_config, causal)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load strictly from a folder, a hub id or "nano", in eval mode and fp32 (or `dtype`).

        fp32 whatever the format of the weights: in bf16 codes differ (a quarter of them at the fourth level).

        Raises UserError for anything but a tokenizer, and for missing, unexpected or misshapen weights.
        """
        return load_tokenizer(cls, super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | os.PathLike[str], **kwargs: Any
    ) -> None:
        """Save config.json and safetensors weights; other files of the folder stay, stale weights do not."""
        save = super().save_pretrained
        with quiet(size_of_model(self)):
            save_whole(lambda folder: save(folder, **kwargs), save_directory)


def _first_images(quantized: QuantizerOutput, count: int | None) -> QuantizerOutput:
    """The output of the first `count` images (default: all), with zero loss, which is counted already."""
    no_loss = torch.zeros_like(quantized.commitment_loss)
    return QuantizerOutput(quantized.quantized[:count], quantized.codes[:count], no_loss)
