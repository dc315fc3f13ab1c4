"""The three cross-entropies of the unified model: text, pixel codes, semantic codes.

Every loss is a sum and a count, so that a trainer can divide by the count of *all* ranks and micro-batches.
The text count is the number of text targets. The count of a visual loss is the number of target positions;
its sum adds, over positions, the mean over depths sum_d w_d CE_d / sum_d w_d, so a mean of 1 is 1 nat per
code. Logits are held chunk by chunk (linear_cross_entropy.py).

Shapes: B sequences of length L, T targets, D depths, H hidden size of the LLM, W width of a depth
transformer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..tokenizer import VisualCodes
from .assembly.liger import liger_cross_entropy
from .batch_index import BatchIndex
from .branch import Branches
from .depth_transformer import DepthTransformer
from .linear_cross_entropy import Classifier, linear_cross_entropy, without_padding
from .outputs import DualTokenOutput, LossTerms, TargetLosses
from .protocol import UnifiedModel


@dataclass(frozen=True)
class VisualTargets:
    """Where codes are predicted: `rows` index the flattened (B * (L-1)) states, `slots` the (I * P) codes."""

    rows: Tensor
    slots: Tensor

    def __len__(self) -> int:
        return self.rows.numel()

    def random_subset(self, fraction: float) -> "VisualTargets":
        """A random share of the targets, at least one where there is any."""
        if not len(self) or fraction >= 1.0:
            return self
        kept = torch.randperm(len(self), device=self.rows.device)[: max(1, round(len(self) * fraction))]
        return VisualTargets(rows=self.rows[kept], slots=self.slots[kept])

    def codes(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The targets' codes (T, D) of each branch, from those of all images (I, P, D)."""
        return {name: codes.flatten(0, 1)[self.slots] for name, codes in images.items()}


@dataclass(frozen=True)
class CodeLoss:
    """Loss of one branch: the differentiable `sum`; detached, its parts by depth (D,) and position (T,)."""

    sum: Tensor
    per_depth: Tensor
    per_position: Tensor


def model_losses(
    model: UnifiedModel,
    states: Tensor,
    labels: Tensor,
    index: BatchIndex,
    codes: VisualCodes | None,
    reduction: str,
) -> DualTokenOutput:
    """All losses of a batch, from the LLM's states (B, L, H); other arguments as in the model's `forward`."""
    config, text_rows = model.config, index.text_rows
    flat, following = states[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    text_sum, text_each = text_losses(
        model.get_output_embeddings(),
        flat[text_rows],
        following[text_rows],
        config.softcap,
        config.num_text_tokens,
    )
    targets = VisualTargets(index.visual_rows, index.visual_slots)
    trained = targets.random_subset(config.visual_target_fraction) if model.training else targets
    by_branch = _branch_losses(model, flat, trained, codes)
    count, used = len(targets), len(trained)
    scale = count / max(used, 1)
    sums = LossTerms(text=text_sum, **{name: one.sum * scale for name, one in by_branch.items()})
    visual_count = labels.new_full((), count)
    counts = LossTerms(labels.new_full((), len(text_rows)), visual_count, visual_count)
    means = sums.means(counts)
    depth_losses: dict[str, Any] = {
        f"{name}_depth_losses": one.per_depth * scale / max(count, 1) for name, one in by_branch.items()
    }
    each = {name: TargetLosses(trained.rows, one.per_position[:used]) for name, one in by_branch.items()}
    return DualTokenOutput(
        loss=(means if reduction == "mean" else sums).weighted(config.loss_weights),
        text_loss=means.text,
        pixel_loss=means.pixel,
        semantic_loss=means.semantic,
        sums=sums,
        counts=counts,
        **depth_losses,
        target_losses={"text": TargetLosses(text_rows, text_each), **each},
    )


def visual_log_likelihood(
    model: UnifiedModel, states: Tensor, input_ids: Tensor, labels: Tensor, codes: VisualCodes
) -> LossTerms:
    """The model's `visual_log_likelihood`, from the LLM's states (B, L, H)."""
    index = BatchIndex.of(input_ids, labels, model.config.image_token_id)
    targets = VisualTargets(index.visual_rows, index.visual_slots)
    at_targets, chosen = states[:, :-1].flatten(0, 1)[targets.rows], targets.codes(vars(codes))
    empty = dict.fromkeys(("text", *chosen), at_targets[:0])
    return LossTerms(**{**empty, **code_log_likelihoods(model.branches, at_targets, chosen)})


def _branch_losses(
    model: UnifiedModel, flat: Tensor, targets: VisualTargets, codes: VisualCodes | None
) -> dict[str, CodeLoss]:
    """The loss of each branch at its targets, from the states (B * (L-1), H)."""
    if len(targets):
        assert codes is not None, "the slots were matched with the images when they were embedded"
        states, chosen = flat[targets.rows], targets.codes(vars(codes))
    else:
        # Without a visual target, one made-up position with the scale 0 gives every parameter a gradient.
        states = flat[:1] if model.touches_everything() else flat[:0]
        chosen = model.config.made_up_codes(len(states), flat.device)
    return code_losses(model.branches, states, chosen, model.config.depth_weights)


def text_losses(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
    softcap: float | None = None,
    num_tokens: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Summed cross-entropy of the LLM's output layer: states (T, H) and ids (T,) -> a scalar.

    Rows of the layer from `num_tokens` on are padding.

    Also, detached, the loss of each target (T,), which a fused loss does not return (None).
    """
    if states.is_cuda and states.requires_grad and len(states) and _is_unhooked(head):
        fused = liger_cross_entropy(states.device)
        if fused is not None:
            return fused(states, *_tokens_of(head, num_tokens), targets, softcap), None
    return cross_entropy(head, states, targets, softcap=softcap, num_classes=num_tokens)


def code_losses(
    branches: Branches,
    states: Tensor,
    codes: Mapping[str, Tensor],
    depth_weights: Mapping[str, Sequence[float]],
) -> dict[str, CodeLoss]:
    """The weighted cross-entropy of each branch over T target positions (see the module's docstring).

    States (T, H) of the LLM, codes (T, D) by branch; a branch that the model lacks has the loss 0.
    """
    losses = {}
    for name, targets in codes.items():
        if name not in branches:
            zeros = states.new_zeros(len(states), targets.shape[1])
            losses[name] = CodeLoss(zeros.sum(), zeros.sum(dim=0), zeros.sum(dim=1))
            continue
        # Filled one by one: a copy of a list would make the host wait for the device.
        weights = torch.cat([states.new_full((1,), w, dtype=torch.float32) for w in depth_weights[name]])
        weights = weights / weights.sum()
        outputs = branches.predict(name, states, codes)
        total, each = _code_cross_entropy(branches[name].depth_transformer, outputs, targets, weights)
        losses[name] = CodeLoss(total, each.sum(dim=0), each @ weights.to(each.dtype))
    return losses


@torch.no_grad()
def code_log_likelihoods(
    branches: Branches, states: Tensor, codes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """log P(code_d | code_<d, h) by branch: (T, H) states and (T, D) codes -> (T, D), in fp32 nats."""
    found = {}
    for name, branch in branches.items():
        outputs = branches.predict(name, states, codes)
        ones = outputs.new_ones(codes[name].shape[1])
        found[name] = -_code_cross_entropy(branch.depth_transformer, outputs, codes[name], ones)[1]
    return found


def _code_cross_entropy(
    head: DepthTransformer, outputs: Tensor, codes: Tensor, depth_weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of all codes' losses, weighted by depth, and, detached, each code's loss (T, D)."""
    if len(head.classifiers) == 1:
        weights = depth_weights.expand(codes.shape).flatten()
        total, losses = cross_entropy(head.classifiers[0], outputs.flatten(0, 1), codes.flatten(), weights)
        return total, losses.view(codes.shape)
    by_depth = [
        cross_entropy(classifier, outputs[:, depth], codes[:, depth], depth_weights[depth].expand(len(codes)))
        for depth, classifier in enumerate(head.classifiers)
    ]
    totals, each = zip(*by_depth, strict=True)
    return torch.stack(totals).sum(), torch.stack(each, dim=1)


def cross_entropy(
    head: nn.Module,
    states: Tensor,
    targets: Tensor,
    row_weights: Tensor | None = None,
    softcap: float | None = None,
    num_classes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy` of any module that computes logits, with its adapters and hooks."""
    if _is_unhooked(head):
        return linear_cross_entropy(
            states,
            head.weight,
            targets,
            bias=head.bias,
            row_weights=row_weights,
            softcap=softcap,
            num_classes=num_classes,
        )
    if isinstance(head, Classifier) and hasattr(head.weight, "ds_id"):
        return head(states, targets, row_weights, softcap, num_classes)  # ZeRO-3's hooks gather the weight
    logits = without_padding(soft_capped(head(states), softcap).float(), num_classes)
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return (losses if row_weights is None else losses * row_weights).sum(), losses.detach()


def _tokens_of(head: nn.Linear, num_tokens: int | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the rows that are tokens, for a loss that knows of no padding."""
    if num_tokens is None or num_tokens >= len(head.weight):
        return head.weight, head.bias
    return head.weight[:num_tokens], None if head.bias is None else head.bias[:num_tokens]


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits squashed into (-cap, cap), as some LLMs do; unchanged for None."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _is_unhooked(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer's weight is all there is to it; device maps and ZeRO-3 show as hooks."""
    hooked = head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head)
    return type(head) in (nn.Linear, Classifier) and not hooked


def check_reduction(reduction: str) -> None:
    """Raise ValueError for anything but "mean" and "sum"."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; allowed: mean, sum")
