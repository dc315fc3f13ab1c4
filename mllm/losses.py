"""The three cross-entropies of the unified model: text, pixel codes, semantic codes.

Every loss is a sum and a count, so that a trainer can divide by the count of *all* ranks and micro-batches.
The text count is the number of text targets. The count of a visual loss is the number of target positions;
its sum adds, over positions, the mean over depths sum_d w_d CE_d / sum_d w_d. A mean of 1 thus means 1 nat
per code in both kinds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .depth_transformer import DepthTransformer
from .visual_embedding import FrozenCodebook


@dataclass(frozen=True)
class LossTerms:
    """One scalar tensor for each of the three losses (a sum in nats, or a count)."""

    text: Tensor
    pixel: Tensor
    semantic: Tensor

    def means(self, counts: "LossTerms") -> "LossTerms":
        """These sums divided by `counts`; a loss without targets is 0."""
        return LossTerms(
            text=self.text / counts.text.clamp(min=1),
            pixel=self.pixel / counts.pixel.clamp(min=1),
            semantic=self.semantic / counts.semantic.clamp(min=1),
        )

    def weighted(self, weights: Mapping[str, float]) -> Tensor:
        """The scalar that adds up the losses named in `weights`, each times its weight."""
        return torch.stack([getattr(self, name) * weight for name, weight in weights.items()]).sum()


@dataclass(frozen=True)
class CodeLoss:
    """Loss of one visual head: the differentiable `sum` and each depth's cross-entropy sum (D,), detached."""

    sum: Tensor
    per_depth: Tensor


def text_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy in fp32: (T, V) logits and (T,) ids -> scalar."""
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def code_log_likelihood(
    head: DepthTransformer,
    states: Tensor,
    codes: Tensor,
    codebook: FrozenCodebook,
    condition: Tensor | None = None,
) -> Tensor:
    """log P(code_d | code_<d, h) of given codes: (T, H) states and (T, D) codes -> (T, D), in fp32 nats."""
    outputs = head(states, codes, codebook, condition)
    if len(head.classifiers) == 1:
        logits = head.classify(outputs, 0).float()
        return -functional.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(
            codes.shape
        )
    by_depth = [
        -functional.cross_entropy(
            head.classify(outputs[:, depth], depth).float(), codes[:, depth], reduction="none"
        )
        for depth in range(codes.shape[1])
    ]
    return torch.stack(by_depth, dim=1)


def code_loss(
    head: DepthTransformer,
    states: Tensor,
    codes: Tensor,
    codebook: FrozenCodebook,
    condition: Tensor | None = None,
    depth_weights: Sequence[float] | None = None,
) -> CodeLoss:
    """Weighted cross-entropy of a visual head over its target positions (see the module's docstring)."""
    per_depth = -code_log_likelihood(head, states, codes, codebook, condition).sum(dim=0)
    weights = (
        torch.ones_like(per_depth) if depth_weights is None else per_depth.new_tensor(list(depth_weights))
    )
    return CodeLoss(sum=(per_depth * weights).sum() / weights.sum(), per_depth=per_depth.detach())
