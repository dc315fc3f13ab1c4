"""Outputs of the unified model's forward pass. Shapes: B sequences of length L, T targets, D depths."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from .language_model import CACHE_NAME


@dataclass(frozen=True)
class LossTerms:
    """A scalar tensor for each of the three losses: a sum in nats, or a count."""

    text: Tensor
    pixel: Tensor
    semantic: Tensor

    def means(self, counts: "LossTerms") -> "LossTerms":
        """These sums divided by `counts`; a loss without targets is 0."""
        means = {name: term / getattr(counts, name).clamp(min=1) for name, term in vars(self).items()}
        return LossTerms(**means)

    def weighted(self, weights: Mapping[str, float]) -> Tensor:
        """The scalar that adds up the losses named in `weights`, each times its weight."""
        return torch.stack([getattr(self, name) * weight for name, weight in weights.items()]).sum()


@dataclass(frozen=True)
class TargetLosses:
    """Detached losses (T,) of single targets, None where a fused loss does not return them.

    positions: (T,), their indices in the flattened (B * (L-1)) labels after the first.
    """

    positions: Tensor
    losses: Tensor | None


@dataclass
class DualTokenOutput(ModelOutput):
    """Result of a forward pass: losses where labels were given, else logits.

    loss: the weighted sum of the three losses: of their means (`reduction="mean"`) or sums ("sum").
    text_loss, pixel_loss, semantic_loss: means; 0 for a branch that the model leaves out.
    sums, counts: for means over a global batch: `(sums.text / global_count.text) * weight + ...`. Counts
        follow from the labels alone; where a subset of the visual targets is trained on, sums are scaled up.
    pixel_depth_losses, semantic_depth_losses: (D,), the detached mean cross-entropies of each depth.
    target_losses: by name, the losses of all single targets, detached.
    logits: (B, kept, V).
    """

    loss: Tensor | None = None
    text_loss: Tensor | None = None
    pixel_loss: Tensor | None = None
    semantic_loss: Tensor | None = None
    sums: LossTerms | None = None
    counts: LossTerms | None = None
    pixel_depth_losses: Tensor | None = None
    semantic_depth_losses: Tensor | None = None
    target_losses: dict[str, TargetLosses] | None = None
    logits: Tensor | None = None
    # Under the name that the installed transformers reads.
    if CACHE_NAME == "cache":
        cache: Cache | None = None
    else:
        past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
