"""The three cross-entropies of the unified model: text, pixel codes, semantic codes.

Every loss is a sum and a count, so that a trainer can divide by the count of *all* ranks and micro-batches.
The text count is the number of text targets. The count of a visual loss is the number of target positions;
its sum adds, over positions, the mean over depths sum_d w_d CE_d / sum_d w_d. A mean of 1 thus means 1 nat
per code in both kinds. Of the logits only a chunk is held at a time (linear_cross_entropy.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from .assembly.liger import liger_cross_entropy
from .depth_transformer import CodeClassifier, DepthTransformer
from .linear_cross_entropy import linear_cross_entropy
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
    """Loss of one visual head: the differentiable `sum`, and detached each depth's cross-entropy sum (D,) and
    each position's part of `sum` (T,)."""

    sum: Tensor
    per_depth: Tensor
    per_position: Tensor


def text_loss(head: nn.Module, states: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """Summed cross-entropy of the text head: states (T, H) and ids (T,) -> scalar."""
    return text_losses(head, states, targets, softcap)[0]


def text_losses(
    head: nn.Module, states: Tensor, targets: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor | None]:
    """`text_loss` and, detached, each target's part of it (T,), which a fused loss does not tell (None)."""
    if states.is_cuda and states.requires_grad and len(states) and _is_plain_linear(head):
        fused = liger_cross_entropy(states.device)
        if fused is not None:
            return fused(states, head.weight, targets, head.bias, softcap), None
    return _cross_entropy(head, states, targets, softcap=softcap)


@torch.no_grad()
def code_log_likelihood(
    head: DepthTransformer,
    states: Tensor,
    codes: Tensor,
    codebook: FrozenCodebook,
    condition: Tensor | None = None,
) -> Tensor:
    """log P(code_d | code_<d, h) of given codes: (T, H) states and (T, D) codes -> (T, D), in fp32 nats.

    For evaluation: without gradients.
    """
    outputs = head(states, codes, codebook, condition)
    return -_code_cross_entropy(head, outputs, codes, outputs.new_ones(head.depth))[1]


def code_loss(
    head: DepthTransformer,
    states: Tensor,
    codes: Tensor,
    codebook: FrozenCodebook,
    condition: Tensor | None = None,
    depth_weights: Sequence[float] | None = None,
) -> CodeLoss:
    """Weighted cross-entropy of a visual head over its target positions (see the module's docstring)."""
    weights = torch.tensor(depth_weights or [1.0] * head.depth, dtype=torch.float32, device=states.device)
    outputs = head(states, codes, codebook, condition)
    weights = weights / weights.sum()
    total, losses = _code_cross_entropy(head, outputs, codes, weights)
    return CodeLoss(sum=total, per_depth=losses.sum(dim=0), per_position=losses @ weights.to(losses.dtype))


def _code_cross_entropy(
    head: DepthTransformer, outputs: Tensor, codes: Tensor, depth_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum over all codes with their depth's weight, and each code's loss (T, D), detached."""
    if len(head.classifiers) == 1:
        weights = depth_weights.expand(codes.shape).flatten()
        total, losses = _cross_entropy(head.classifiers[0], outputs.flatten(0, 1), codes.flatten(), weights)
        return total, losses.view(codes.shape)
    by_depth = [
        _cross_entropy(
            classifier, outputs[:, depth], codes[:, depth], depth_weights[depth].expand(len(codes))
        )
        for depth, classifier in enumerate(head.classifiers)
    ]
    return torch.stack([total for total, _ in by_depth]).sum(), torch.stack(
        [losses for _, losses in by_depth], dim=1
    )


def _cross_entropy(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
    row_weights: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` of whatever module makes the logits."""
    if isinstance(head, CodeClassifier):
        return head(states, targets, row_weights)
    if _is_plain_linear(head):
        return linear_cross_entropy(
            states, head.weight, targets, bias=head.bias, row_weights=row_weights, softcap=softcap
        )
    if type(head) is nn.Linear and hasattr(head.weight, "ds_id") and "forward" not in vars(head):
        return _within_forward(head, states, targets, row_weights, softcap)
    logits = soft_capped(head(states), softcap).float()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return (losses if row_weights is None else losses * row_weights).sum(), losses.detach()


def _within_forward(
    head: nn.Linear, states: Tensor, targets: Tensor, row_weights: Tensor | None, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The loss inside a call of the head: there its hooks hold the weight that ZeRO-3 has divided."""

    def forward(states: Tensor) -> tuple[Tensor, Tensor]:
        return linear_cross_entropy(
            states, head.weight, targets, bias=head.bias, row_weights=row_weights, softcap=softcap
        )

    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        return head(states)
    finally:
        del head.forward


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits squashed into (-cap, cap), as some LLMs do; None: as they are."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether the module's weight says all about it.

    Adapters and quantized layers are other classes; ZeRO-3, which holds a weight only while its module runs,
    and device maps show as hooks. These are called as they are.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) is nn.Linear and not hooked
