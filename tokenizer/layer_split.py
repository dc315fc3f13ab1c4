"""Measuring which layers of a new backbone to use for pixel and for semantic codes.

The paper chooses them from a plot: shallow layers of a SigLIP are similar to each other, and so are deep
ones; pixels are learned on the former, semantics on the latter (arXiv 2503.14324, section 3.1). Here the
layers are segmented by the similarity of all pairs, and a linear regression measures how much of the pixels
each layer retains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..common.errors import UserError
from .backbone import TappedSiglip, cut_patches

#: Tokens for the similarities; more change them by less than 0.01.
MAX_TOKENS = 4096
MIN_TOKENS = 512
#: A pixel layer may recover this much less of the pixels' variance than the best layer.
TOLERATED_LOSS = 0.1
_RIDGE = 1e-2


@dataclass(frozen=True)
class LayerSplit:
    """The measurements and the suggested layers.

    Layers are numbered as in `DualTokenizerConfig`: 0 is the patch embedding, i the output of layer i; L + 1
    in all. cosine, cka: (L+1, L+1) similarity of centred features. pixel_share: (L+1,) share of the pixels'
    variance that a linear map recovers on held-out tokens. boundaries: first layer of every segment but the
    first. confidence: from 0 to 1, the relative advantage of the chosen cuts over the best cuts whose first
    one is two or more layers away; below 0.1 the plot should be inspected.
    """

    cosine: Tensor
    cka: Tensor
    pixel_share: Tensor
    boundaries: tuple[int, ...]
    shortcut_layer: int | None
    pixel_layer: int
    semantic_layer: int
    confidence: float
    reasons: tuple[str, ...]


@torch.no_grad()
def split_layers(
    backbone: TappedSiglip, batches: Iterable[Tensor], segments: int = 3, seed: int = 0
) -> LayerSplit:
    """Measure a backbone on images and suggest layers for the pixel and semantic branches.

    batches: normalised images (B, 3, S, S), a hundred or more in all. segments: of the layers (early, middle,
    late). Raises UserError for too few images or layers.
    """
    states, pixels = _collect(backbone, batches, seed)
    layers = len(states) - 1
    if layers < segments:
        raise UserError(f"the backbone has {layers} layers, too few for {segments} segments; give fewer")
    centred = [_unit_scale(state) for state in states]
    cka = torch.stack([torch.stack([linear_cka(a, b) for b in centred]) for a in centred])
    cosine = torch.stack([torch.stack([_mean_cosine(a, b) for b in centred]) for a in centred])
    share = torch.stack([recovered_share(state, pixels) for state in states])
    # Without the patch embedding, which sees one patch only and would often be a separate segment.
    cuts, confidence = change_points(cka[1:, 1:], segments)
    return _recommend(cosine, cka, share, tuple(cut + 1 for cut in cuts), confidence)


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment of centred features (n, p) and (n, q): a scalar in [0, 1].

    ‖aᵀb‖² / (‖aᵀa‖ ‖bᵀb‖) in Frobenius norms (Kornblith et al., arXiv 1905.00414, eq. 3); invariant to
    rotation and scale.
    """
    cross = (a.t() @ b).square().sum()
    return cross / ((a.t() @ a).norm() * (b.t() @ b).norm()).clamp(min=1e-12)


def recovered_share(features: Tensor, pixels: Tensor) -> Tensor:
    """R² of ridge regression from features (n, p) to pixels (n, q) on the half that was not fitted."""
    half = len(features) // 2
    x = torch.cat((_unit_scale(features), torch.ones(len(features), 1, device=features.device)), dim=1)
    train, test = x[:half], x[half:]
    gram = train.t() @ train
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    weights = torch.linalg.solve(gram, train.t() @ pixels[:half])
    target = pixels[half:]
    error = (test @ weights - target).square().sum()
    return 1 - error / (target - target.mean(0)).square().sum().clamp(min=1e-12)


def change_points(similarity: Tensor, segments: int) -> tuple[tuple[int, ...], float]:
    """Cut a sequence of layers into the segments with the greatest similarity inside.

    The cost of a segment is the sum of 1 - similarity over its pairs, divided by its length (kernel change
    points), minimised by dynamic programming. Returns the first layer of every segment but the first, and the
    confidence of `LayerSplit`.
    """
    costs = _segment_costs(1 - similarity)
    best, cuts = _best_cuts(costs, segments, range(1, len(costs)))
    others = [first for first in range(1, len(costs)) if abs(first - cuts[0]) >= 2]
    if not others:
        return cuts, 0.0
    runner_up, _ = _best_cuts(costs, segments, others)
    return cuts, float(max(0.0, 1 - best / max(runner_up, 1e-12)))


def _segment_costs(distance: Tensor) -> list[list[float]]:
    """costs[i][j], i < j: of the segment from layer i to layer j - 1."""
    area = nn.functional.pad(distance.cpu().double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    corners, index = area.diagonal(), torch.arange(len(area))
    blocks = corners[None, :] - area - area.t() + corners[:, None]
    return (blocks / (index[None, :] - index[:, None]).clamp(min=1)).tolist()


def _best_cuts(
    costs: list[list[float]], segments: int, first_cuts: Iterable[int]
) -> tuple[float, tuple[int, ...]]:
    """(cost, cuts) of the best cuts into `segments` parts with the first one among `first_cuts`."""
    count = len(costs) - 1
    table: dict[int, tuple[float, tuple[int, ...]]] = {
        end: (costs[0][end], ()) for end in (first_cuts if segments > 1 else [count]) if end <= count
    }
    for part in range(1, segments):
        ends = [count] if part == segments - 1 else range(part + 1, count)
        table = {
            end: min(
                (cost + costs[start][end], (*cuts, start))
                for start, (cost, cuts) in table.items()
                if start < end
            )
            for end in ends
            if any(start < end for start in table)
        }
    return table.get(count, (float("inf"), ()))


def _recommend(
    cosine: Tensor, cka: Tensor, share: Tensor, boundaries: tuple[int, ...], confidence: float
) -> LayerSplit:
    layers = len(share) - 1
    best = float(share.max())
    last_early = boundaries[0] - 1
    enough = [layer for layer in range(1, last_early + 1) if float(share[layer]) >= best - TOLERATED_LOSS]
    pixel = max(enough, default=1)
    shortcut = round(pixel * 2 / 3) if pixel >= 2 else None  # always between 0 and `pixel`
    semantic = max(layers - 1, pixel, 1)
    reasons = (
        f"pixel layer {pixel}: the early segment ends with layer {last_early}, and a linear map still "
        f"recovers {float(share[pixel]):.0%} of the pixels' variance there (at best {best:.0%}, at the "
        f"last layer {float(share[-1]):.0%})",
        "no shortcut: there is no layer between the embedding and the pixel layer"
        if shortcut is None
        else f"shortcut {shortcut}: two thirds of the way, similarity to the pixel layer "
        f"{float(cka[shortcut, pixel]):.2f}",
        f"semantic layer {semantic}: one before the last, so that a layer is left to read the codes; "
        f"similarity to the last layer {float(cka[semantic, -1]):.2f}, to the pixel layer "
        f"{float(cka[semantic, pixel]):.2f}",
    )
    return LayerSplit(
        cosine=cosine,
        cka=cka,
        pixel_share=share,
        boundaries=boundaries,
        shortcut_layer=shortcut,
        pixel_layer=pixel,
        semantic_layer=semantic,
        confidence=confidence,
        reasons=reasons,
    )


def _collect(backbone: TappedSiglip, batches: Iterable[Tensor], seed: int) -> tuple[list[Tensor], Tensor]:
    """Features of some tokens at every layer, (n, C) each, and their pixels, (n, 3 p²)."""
    vision: Any = backbone.config.vision_config
    generator = torch.Generator().manual_seed(seed)
    states: list[list[Tensor]] = []
    pixels: list[Tensor] = []
    for images in batches:
        patches = backbone.embed_patches(images)
        hidden = [patches, *backbone.run_layers(patches, 0, vision.num_hidden_layers)]
        states = states or [[] for _ in hidden]
        # Few tokens of many images are more informative than all of a few.
        keep = torch.randperm(patches.shape[1], generator=generator)[: max(16, patches.shape[1] // 8)]
        for kept, state in zip(states, hidden, strict=True):
            kept.append(state[:, keep.to(state.device)].flatten(0, 1).float())
        pixels.append(cut_patches(images, vision.patch_size)[:, keep.to(images.device)].flatten(0, 1))
        if sum(map(len, pixels)) >= MAX_TOKENS:
            break
    found = sum(map(len, pixels))
    if found < MIN_TOKENS:
        raise UserError(f"{found} tokens of images are too few, {MIN_TOKENS} are needed: give more images")
    return [torch.cat(kept)[:MAX_TOKENS] for kept in states], torch.cat(pixels)[:MAX_TOKENS]


def _unit_scale(features: Tensor) -> Tensor:
    """Centred, with a mean square norm of one."""
    centred = features - features.mean(0)
    return centred / centred.square().sum(1).mean().sqrt().clamp(min=1e-12)


def _mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(a, b, dim=1).mean()
