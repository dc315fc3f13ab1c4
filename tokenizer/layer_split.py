"""Where to tap a new backbone: which layer still holds the picture, and which one already holds its meaning.

The paper reads this off a plot by eye: shallow layers of a SigLIP resemble each other, so do deep ones;
pixels are learned on the former, meaning on the latter (arXiv 2503.14324, section 3.1). Here the similarity
of all pairs of layers is measured, the sequence of layers is cut where it changes, and a linear regression
measures how much of the pixels each layer still carries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.errors import UserError
from .backbone import TappedSiglip, cut_patches

#: Tokens that the similarities are computed from; more change them by less than a hundredth.
MAX_TOKENS = 4096
MIN_TOKENS = 512
#: A pixel layer may lose this share of what the best layer holds of the pixels.
TOLERATED_LOSS = 0.1
_RIDGE = 1e-2


@dataclass(frozen=True)
class LayerSplit:
    """What was measured, and the taps it suggests.

    Layers are numbered as in `DualTokenizerConfig`: 0 is the patch embedding, i the output of layer i; L + 1
    in all. cosine, cka: (L+1, L+1) similarity of centred features. pixel_share: (L+1,) share of the pixels'
    variance that a linear map recovers, on tokens it was not fitted to. boundaries: first layer of every
    segment but the first. confidence: between 0 and 1, how much better the chosen cuts are than the best cuts
    that move the first one by two layers or more; below 0.1 the plot should be looked at.
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
    """Measure a backbone on images and suggest its taps.

    batches: normalised images (B, 3, S, S), a hundred or more in all. segments: parts the layers fall into
    (early, middle, late). Raises UserError for too few images or layers.
    """
    states, pixels = _collect(backbone, batches, seed)
    layers = len(states) - 1
    if layers < segments:
        raise UserError(f"the backbone has {layers} layers, too few for {segments} segments; give fewer")
    centred = [_unit_scale(state) for state in states]
    cka = torch.stack([torch.stack([linear_cka(a, b) for b in centred]) for a in centred])
    cosine = torch.stack([torch.stack([_mean_cosine(a, b) for b in centred]) for a in centred])
    share = torch.stack([recovered_share(state, pixels) for state in states])
    # The embedding has seen nothing but its own patch; it would often be a segment of its own.
    cuts, confidence = change_points(cka[1:, 1:], segments)
    return _recommend(cosine, cka, share, tuple(cut + 1 for cut in cuts), confidence)


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment of centred features (n, p) and (n, q): a scalar in [0, 1].

    ‖aᵀb‖² / (‖aᵀa‖ ‖bᵀb‖) in Frobenius norms (Kornblith et al., arXiv 1905.00414, eq. 3). It does not change
    with rotations and scale, so that layers of another basis can be compared.
    """
    cross = (a.t() @ b).square().sum()
    return cross / ((a.t() @ a).norm() * (b.t() @ b).norm()).clamp(min=1e-12)


def recovered_share(features: Tensor, pixels: Tensor) -> Tensor:
    """R² of ridge regression from features (n, p) to pixels (n, q), fitted on one half, measured on the
    other.
    """
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
    """Cut a sequence of layers into segments that resemble themselves most.

    The cost of a segment is the sum of 1 - similarity over its pairs, divided by its length (kernel change
    points); the best cuts are found exactly, by dynamic programming. Returns the first layer of every segment
    but the first, and the confidence described in `LayerSplit`.
    """
    costs = _segment_costs(1 - similarity)
    best, cuts = _best_cuts(costs, segments, range(1, len(costs)))
    others = [first for first in range(1, len(costs)) if abs(first - cuts[0]) >= 2]
    if not others:
        return cuts, 0.0
    runner_up, _ = _best_cuts(costs, segments, others)
    return cuts, float(max(0.0, 1 - best / max(runner_up, 1e-12)))


def _segment_costs(distance: Tensor) -> list[list[float]]:
    """costs[i][j]: of the segment from layer i to layer j - 1."""
    count = len(distance)
    area = torch.zeros(count + 1, count + 1, dtype=torch.float64)
    area[1:, 1:] = distance.double().cpu().cumsum(0).cumsum(1)
    costs = [[0.0] * (count + 1) for _ in range(count + 1)]
    for i in range(count):
        for j in range(i + 1, count + 1):
            block = area[j, j] - area[i, j] - area[j, i] + area[i, i]
            costs[i][j] = float(block) / (j - i)
    return costs


def _best_cuts(
    costs: list[list[float]], segments: int, first_cuts: Iterable[int]
) -> tuple[float, tuple[int, ...]]:
    """The cheapest cuts into `segments` parts whose first one is among `first_cuts`."""
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
    shortcut = round(pixel * 2 / 3) if pixel >= 2 else None
    shortcut = shortcut if shortcut is not None and 0 < shortcut < pixel else None
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
    """Features of some tokens at every layer, (n, C) each, and the pixels under them, (n, 3 p²)."""
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
    return torch.nn.functional.cosine_similarity(a, b, dim=1).mean()
