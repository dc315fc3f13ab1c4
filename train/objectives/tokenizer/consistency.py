"""A consistency loss that pulls the features of equal patches together.

Attention lets a patch without content store information about the rest of the image. Quantized, plain
backgrounds then get hundreds of almost random codes, which a language model has to predict one by one. The
loss acts where pixels repeat exactly (graphics, diagrams, cut-out products), and not on photos.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....tokenizer.backbone import cut_patches

#: Content that fills at least this share of an image is its background.
BACKGROUND_SHARE = 0.2

_PRECISION = 1e5  # signatures within 1e-5 are equal: the order of summation may differ between patches


def content_groups(pixel_values: Tensor, grid: int, minimum_share: float = 0.0) -> Tensor:
    """Number the patches by content: (B, 3, S, S) -> (B, grid²) int64; equal numbers mean equal pixels.

    Patches whose content fills less than `minimum_share` of their image get -1: with BACKGROUND_SHARE all
    but the background.
    """
    patches = cut_patches(pixel_values.detach().double(), pixel_values.shape[-1] // grid)
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(patches.shape[-1], generator=generator, dtype=torch.float64).to(patches.device)
    signatures = ((patches * weights).sum(-1) * _PRECISION).round().to(torch.int64)
    _, groups = signatures.unique(return_inverse=True)
    return keep_common(groups, minimum_share)


def keep_common(groups: Tensor, minimum_share: float) -> Tensor:
    """Set groups (B, N) that fill less than `minimum_share` of their image to -1."""
    images = torch.arange(len(groups), device=groups.device).unsqueeze(1)
    _, member, count = (images * (groups.max() + 1) + groups).unique(return_inverse=True, return_counts=True)
    return groups.masked_fill(count[member] < minimum_share * groups.shape[1], -1)


def consistency_loss(features: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Mean distance of features (B, N, C) to the mean of their group (B, N), over the spread of all features.

    The groups are numbers below `num_groups`, or -1. A dimensionless scalar: 0 if equal content has equal
    features, about 1 if the two are unrelated. Group -1 and groups of one patch contribute 0.
    """
    rows = features.float().flatten(0, -2)
    spread = (rows - rows.mean(0)).square().sum(1).mean().sqrt()
    ids = groups.flatten() + 1
    # Not bincount, for which the host waits.
    count = torch.zeros(num_groups + 1, dtype=torch.int64, device=ids.device)
    count = count.index_add(0, ids, torch.ones_like(ids))
    means = rows.new_zeros(len(count), rows.shape[1]).index_add(0, ids, rows)
    means = means / count.clamp(min=1).unsqueeze(1)
    distances = (rows - means[ids]).square().sum(1).add(1e-8).sqrt()
    return (distances * (ids > 0) * (count[ids] > 1)).mean() / spread.clamp(min=1e-6)
