"""The pixel decoder: a residual block, then a VQGAN decoder."""

from __future__ import annotations

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .settings import DecoderConfig


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """VQGAN's norm with `groups` groups, fewer for widths that they do not divide."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """norm-SiLU-conv twice, plus the input (through a 1x1 convolution when the width changes)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, first_kernel: int = 3) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, first_kernel, padding=first_kernel // 2)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.skip: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H, W)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.skip(x) + hidden


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions of a map, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        normed = self.norm(x)
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2).unsqueeze(1)
            for layer in (self.query, self.key, self.value)
        )
        mixed = attend(query, key, value)
        return x + self.out(mixed.squeeze(1).transpose(1, 2).reshape(x.shape))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, optionally each with attention, then upsampling."""

    def __init__(
        self, in_channels: int, channels: int, blocks: int, attention: bool, upsample: bool, groups: int
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in pairwise(widths))
        attentions = blocks if attention else 0
        self.attentions = nn.ModuleList(SpatialAttention(channels, groups) for _ in range(attentions))
        self.upsample = Upsample(channels) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, channels, 2H, 2W), or H, W at the finest level."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[index](x)
        return self.upsample(x)


class PixelDecoder(nn.Module):
    """Decode a feature map into an image.

    The map is resized to the decoder's latent (bilinear, align_corners=False, no antialias: 27 x 27 -> 24 x
    24 in the released model), goes through one residual block and then through the decoder of VQGAN (arXiv
    2012.09841).
    """

    def __init__(self, config: DecoderConfig, feature_dim: int) -> None:
        super().__init__()
        self.latent_size = config.latent_size
        groups = config.norm_groups
        self.post_quant = ResidualBlock(feature_dim, config.in_channels, groups, first_kernel=1)
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.in_channels, channels, 3, padding=1)
        self.middle_block1 = ResidualBlock(channels, channels, groups)
        self.middle_attention = SpatialAttention(channels, groups)
        self.middle_block2 = ResidualBlock(channels, channels, groups)
        self.levels = nn.ModuleList()  # coarsest first
        side = config.latent_size
        for index in reversed(range(len(config.ch_mult))):
            width = config.ch * config.ch_mult[index]
            attention = side in config.attn_resolutions
            self.levels.append(
                Level(channels, width, config.num_res_blocks + 1, attention, index > 0, groups)
            )
            channels, side = width, side * 2
        self.norm_out = group_norm(channels, groups)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)
        self.patch_side = config.resolution // config.latent_size
        patch_values = config.out_channels * self.patch_side**2
        self.patch_skip = nn.Conv2d(feature_dim, patch_values, 1) if config.patch_skip else None

    @property
    def last_layer(self) -> Tensor:
        """The weight for balancing adversarial and reconstruction gradients."""
        return self.conv_out.weight

    def forward(self, features: Tensor) -> Tensor:
        """(B, feature_dim, h, w) -> image (B, out_channels, S, S), not clamped."""
        side = self.latent_size
        if features.shape[-2:] != (side, side):
            features = F.interpolate(features, size=(side, side), mode="bilinear", align_corners=False)
        hidden = self.conv_in(self.post_quant(features))
        hidden = self.middle_block2(self.middle_attention(self.middle_block1(hidden)))
        for level in self.levels:
            hidden = level(hidden)
        image = self.conv_out(F.silu(self.norm_out(hidden)))
        if self.patch_skip is not None:
            image = image + F.pixel_shuffle(self.patch_skip(features), self.patch_side)
        return image
