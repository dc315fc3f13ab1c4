"""Cross-entropy of a linear classifier that holds the logits of one chunk of rows at a time.

The gradients are computed in the same pass, from each chunk's logits, and only scaled in the backward pass.
So logits are computed once, and the backward pass does not need the weight, which ZeRO-3 has partitioned
again by then. The rows' weights in the loss must be known in advance: the argument `row_weights`.

Shapes: T rows, W width, N classes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Most logits of a chunk, 32 MB in fp32: with fewer, reading and writing the weight's gradient once per chunk
# would take longer than the products. GPUs need larger products.
MAX_LOGITS = 2**23
GPU_FACTOR = 4


def linear_cross_entropy(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    row_weights: Tensor | None = None,
    softcap: float | None = None,
    num_classes: int | None = None,
    chunk_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`sum(row_weights * losses)` and `losses`, the cross-entropies of `states @ weight.T + bias`.

    Only the sum has gradients: to states, weight and bias, where they require them. Its backward pass runs
    once. Without a row the sum is 0 and the gradients are zeros. Products have the dtype that `nn.Linear`
    would use, autocast included; the softmax and sums over chunks are fp32 (fp64 for fp64).

    Args:
        states: (T, W); weight: (N, W); bias: (N,) or None.
        targets: (T,) int64 classes; no index is ignored.
        row_weights: (T,) factors without gradients; None: all one.
        softcap: c of logits `c * tanh(logits / c)`; None: no cap.
        num_classes: classes from this one on are padding, with probability 0; None: there are none.
        chunk_rows: rows whose logits are held at once; None: by device and sizes.

    Returns:
        The scalar sum and the detached losses (T,), in nats.
    """
    rows = chunk_rows or rows_at_once(len(weight), weight.shape[1], on_gpu=states.device.type != "cpu")
    task = _Task(targets, row_weights, softcap, rows, num_classes)
    if torch.is_grad_enabled():
        return _LinearCrossEntropy.apply(states, weight, bias, task)
    losses, _ = _run(states, weight, bias, task, wanted=(False, False, False))
    return task.total(losses), losses


class Classifier(nn.Linear):
    """A linear layer that, given targets, returns `linear_cross_entropy` instead of logits.

    The module that owns the weight computes the loss, as ZeRO-3 gathers the weight only in its forward.
    """

    @classmethod
    def of(cls, layer: nn.Module) -> nn.Module:
        """A classifier that shares the parameters of a plain linear layer; any other layer unchanged."""
        if type(layer) is not nn.Linear:
            return layer
        made = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        # transformers' mark that the weights are trained or initialised.
        made._is_hf_initialized = getattr(layer, "_is_hf_initialized", False)  # type: ignore[assignment]
        return made.train(layer.training)

    def forward(
        self,
        input: Tensor,
        targets: Tensor | None = None,
        row_weights: Tensor | None = None,
        softcap: float | None = None,
        num_classes: int | None = None,
    ) -> Any:  # Tensor, or tuple[Tensor, Tensor] with targets
        """Logits (..., W) -> (..., N); or (T, W) and `targets` (T,) as `linear_cross_entropy`."""
        if targets is None:
            return super().forward(input)
        return linear_cross_entropy(
            input,
            self.weight,
            targets,
            bias=self.bias,
            row_weights=row_weights,
            softcap=softcap,
            num_classes=num_classes,
        )


def without_padding(logits: Tensor, num_classes: int | None) -> Tensor:
    """Logits (..., N), in place -inf from class `num_classes` on; None: every class counts."""
    if num_classes is not None and num_classes < logits.shape[-1]:
        logits[..., num_classes:] = -math.inf
    return logits


class _Task(NamedTuple):
    """The arguments of a row's loss other than logits, the rows of a chunk, and the number of classes."""

    targets: Tensor
    row_weights: Tensor | None
    softcap: float | None
    rows: int
    num_classes: int | None

    def total(self, losses: Tensor) -> Tensor:
        return (losses if self.row_weights is None else losses * self.row_weights).sum()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, task: _Task
    ) -> tuple[Tensor, Tensor]:
        losses, gradients = _run(states, weight, bias, task, wanted=ctx.needs_input_grad[:3])
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return task.total(losses), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # In place, as a copy of the weight's gradient would be the largest tensor of all. Autograd notices
        # the change and refuses a second backward pass.
        scaled = [None if gradient is None else gradient.mul_(scale) for gradient in ctx.saved_tensors]
        return (*scaled, None)


def rows_at_once(num_classes: int, width: int, on_gpu: bool = True) -> int:
    """Rows whose logits are held at once, for a weight (N, W)."""
    limit = GPU_FACTOR * MAX_LOGITS if on_gpu else MAX_LOGITS
    # With a quarter of the width in rows the logits are a quarter of the weight: few next to its gradient.
    return max(limit // num_classes, width // 4, 1)


def _run(
    states: Tensor, weight: Tensor, bias: Tensor | None, task: _Task, wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses (T,) and the sum's gradients to states, weight and bias; None where not wanted."""
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    precise = torch.promote_types(dtype, torch.float32)
    matrix, offset = weight.to(dtype), None if bias is None else bias.to(dtype)
    summed = precise if len(states) > task.rows else dtype  # a single product is not summed
    losses = states.new_empty(len(states), dtype=precise)
    to_states = torch.zeros_like(states) if wanted[0] else None
    to_weight = torch.zeros_like(weight, dtype=summed) if wanted[1] else None
    to_bias = torch.zeros_like(bias, dtype=summed) if wanted[2] and bias is not None else None
    for start in range(0, len(states), task.rows):
        chunk = slice(start, start + task.rows)
        inputs = states[chunk].to(dtype)
        losses[chunk], gradient = _rows_loss(
            functional.linear(inputs, matrix, offset).to(precise),
            task.targets[chunk],
            None if task.row_weights is None else task.row_weights[chunk].to(precise),
            task,
            any(wanted),
        )
        if gradient is None:
            continue
        gradient = gradient.to(dtype)
        if to_states is not None:
            to_states[chunk] = gradient @ matrix
        if to_weight is not None:
            _add_product(to_weight, gradient.t(), inputs)
        if to_bias is not None:
            to_bias.add_(gradient.sum(dim=0, dtype=summed))
        del gradient  # before the next chunk's logits are computed
    if to_weight is not None:
        to_weight = to_weight.to(weight.dtype)
    if to_bias is not None and bias is not None:
        to_bias = to_bias.to(bias.dtype)
    return losses, [to_states, to_weight, to_bias]


def _rows_loss(
    logits: Tensor, targets: Tensor, row_weights: Tensor | None, task: _Task, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Losses (t,) of logits (t, N), and the weighted sum's gradient to them, which overwrites them."""
    target, slope = targets.unsqueeze(1), None
    if task.softcap is not None:
        squashed = logits.div_(task.softcap).tanh_()
        logits, slope = squashed * task.softcap, squashed.square_().neg_().add_(1.0)
    without_padding(logits, task.num_classes)
    logits.sub_(logits.amax(dim=1, keepdim=True))
    at_target = logits.gather(1, target)
    sums = logits.exp_().sum(dim=1, keepdim=True)
    losses = (sums.log() - at_target).squeeze(1)
    if not with_gradient:
        return losses, None
    # A row's loss has the gradient p - [class is the target] to its logits.
    share = torch.ones_like(sums) if row_weights is None else row_weights.unsqueeze(1)
    gradient = logits.mul_(share / sums).scatter_add_(1, target, -share)
    return losses, gradient if slope is None else gradient.mul_(slope)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
