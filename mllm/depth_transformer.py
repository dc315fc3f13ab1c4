"""The depth transformer: predicts the codes of one visual position, depth by depth.

Source: DualToken, arXiv 2503.14324, section 3.3. Shapes: T visual positions (the batch of this module), D
depths, W width, N codes, C code dimension, H hidden size of the LLM.

The input at depth 1 is the LLM's state h; at depth d > 1 it is the sum of the code vectors of the depths
before d, projected to W. Attention is causal over depth, so every depth sees h through depth 1.
"""

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init

from .depth_attention import attend_over_depths, attend_to_past
from .linear_cross_entropy import Classifier
from .settings import CodebookConfig, DepthTransformerConfig
from .visual_embedding import FrozenCodebook


class DepthBlock(nn.Module):
    """Pre-norm transformer layer with causal attention over depth, fused qkv and a GELU MLP."""

    def __init__(self, width: int, num_heads: int, intermediate_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """All depths at once: (T, D, W) -> (T, D, W)."""
        q, k, v = self._heads(x).permute(2, 0, 3, 1, 4).unbind(0)
        return self._finish(x, attend_over_depths(q, k, v).transpose(1, 2))

    def step(self, x: Tensor, keys: Tensor, values: Tensor, depth: int) -> Tensor:
        """One depth: (T, W) -> (T, W); writes index `depth` of the (T, heads, D, head width) caches."""
        q, k, v = self._heads(x).unbind(1)
        keys[:, :, depth], values[:, :, depth] = k, v
        return self._finish(x, attend_to_past(q, keys[:, :, : depth + 1], values[:, :, : depth + 1]))

    def _heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values: (..., W) -> (..., 3, heads, head width)."""
        return self.qkv(self.norm1(x)).view(*x.shape[:-1], 3, self.num_heads, x.shape[-1] // self.num_heads)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.proj(attended.reshape(x.shape))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class DepthTransformer(nn.Module):
    """Predicts the D codes of a visual position from the LLM's state.

    Args:
        sizes: of this transformer; its `hidden_size` is W.
        codebook: sizes of the codes that it predicts.
        state_dim: H, the LLM's hidden size.
        shared_classifier: one classifier for all depths, or one per depth.
        condition_dim: code dimension of the branch whose known codes of this position are added to the input
            of depth 1; None for a transformer without condition (the paper).
    """

    def __init__(
        self,
        sizes: DepthTransformerConfig,
        codebook: CodebookConfig,
        *,
        state_dim: int,
        shared_classifier: bool,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        #: Set by transformers' `gradient_checkpointing_enable`, together with the function that recomputes.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = None
        width = sizes.hidden_size
        self.depth, self.width, self.num_heads = codebook.depth, width, sizes.num_heads
        self.from_state = nn.Linear(state_dim, width)
        self.from_code = nn.Linear(codebook.code_dim, width)
        self.from_condition = nn.Linear(condition_dim, width) if condition_dim is not None else None
        self.position = nn.Embedding(codebook.depth, width)
        self.layers = nn.ModuleList(
            DepthBlock(width, sizes.num_heads, sizes.intermediate_size) for _ in range(sizes.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.classifiers = nn.ModuleList(
            Classifier(width, codebook.num_codes, bias=False)
            for _ in range(1 if shared_classifier else codebook.depth)
        )

    def forward(
        self, states: Tensor, codes: Tensor, codebook: FrozenCodebook, condition: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced outputs before the classifier: (T, H), (T, D), condition (T, C') -> (T, D, W)."""
        first = self._first_input(states, condition).unsqueeze(1)
        # Depth d sees the codes of the depths before it, so the last depth's code is never an input.
        sums = codebook.embed_per_depth(codes[:, :-1]).cumsum(dim=1)
        x = torch.cat([first, self.from_code(sums.to(first.dtype))], dim=1)
        # Called as a module: ZeRO-3 gathers a partitioned weight at its owner's forward.
        x = x + self.position(torch.arange(self.depth, device=x.device)).to(x.dtype)
        recomputed = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer in self.layers:
            x = self._gradient_checkpointing_func(layer, x) if recomputed else layer(x)
        return self.norm(x)

    def classify(self, x: Tensor, depth: int) -> Tensor:
        """Logits over the codes of one depth: (..., W) -> (..., N)."""
        return self.classifiers[depth if len(self.classifiers) > 1 else 0](x)

    def new_cache(self, count: int) -> "DepthCache":
        """A cache for `count` positions decoded in one batch; reusable for every next position."""
        return DepthCache(self, count)

    @torch.no_grad()
    def first_step(self, states: Tensor, condition: Tensor | None, cache: "DepthCache") -> Tensor:
        """Logits of the first depth: (T, H) states -> (T, N)."""
        return self._step(self._first_input(states, condition), 0, cache)

    @torch.no_grad()
    def next_step(self, code_sum: Tensor, depth: int, cache: "DepthCache") -> Tensor:
        """Logits of depth index `depth` >= 1 from the sum of the code vectors before it: (T, C) -> (T, N)."""
        return self._step(self.from_code(code_sum.to(self.from_code.weight.dtype)), depth, cache)

    def _blocks(self) -> list[DepthBlock]:
        return [cast(DepthBlock, layer) for layer in self.layers]

    def _first_input(self, states: Tensor, condition: Tensor | None) -> Tensor:
        first = self.from_state(states.to(self.from_state.weight.dtype))
        if self.from_condition is None:
            return first
        if condition is None:
            raise ValueError(
                "this depth transformer is conditioned on the other branch's codes; pass their features"
            )
        return first + self.from_condition(condition.to(self.from_condition.weight.dtype))

    def _step(self, x: Tensor, depth: int, cache: "DepthCache") -> Tensor:
        x = x + self.position.weight[depth].to(x.dtype)
        for layer, (keys, values) in zip(self._blocks(), cache.layers, strict=True):
            x = layer.step(x, keys, values, depth)
        return self.classify(self.norm(x), depth)

    def reset(self, std: float) -> None:
        """Initialise: unit-size inputs from unit-size states and codes, residual branches scaled by depth."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    init.zeros_(module.bias)
        for layer in self._blocks():
            for output in (layer.proj, layer.fc2):
                init.normal_(output.weight, std=(output.in_features * 2 * len(self.layers)) ** -0.5)
        for classifier in self.classifiers:
            init.normal_(cast(nn.Linear, classifier).weight, std=std)
        init.normal_(self.position.weight, std=std)


class DepthCache:
    """Keys and values (T, heads, D, head width) of each layer, allocated once for all positions of an image.

    Each is a tensor of its own: CUDA graphs write only to inputs that are marked as static, and a view of a
    marked tensor is not.
    """

    def __init__(self, head: DepthTransformer, count: int) -> None:
        shape = count, head.num_heads, head.depth, head.width // head.num_heads
        new = partial(head.from_state.weight.new_zeros, shape)
        self.layers = [(new(), new()) for _ in head.layers]

    def tensors(self) -> list[Tensor]:
        """All that decoding a position writes to."""
        return [one for layer in self.layers for one in layer]
