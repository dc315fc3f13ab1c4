"""The model's branches, one for each kind of visual codes: pixel and semantic.

Source: DualToken, arXiv 2503.14324, section 3.3. Shapes: T visual positions, D depths, C code dimension, H
hidden size of the LLM, W width of the depth transformers. Codes are mappings from a branch's name to a tensor
(..., D).
"""

from collections.abc import ItemsView, Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from .configuration import DualTokenConfig
from .depth_transformer import DepthTransformer
from .visual_embedding import CodeProjector, FrozenCodebook


class Branch(nn.Module):
    """A frozen codebook, a projector into the LLM, and a depth transformer from its states to codes.

    Args:
        config: of the model.
        name: "pixel" or "semantic".
        width: of the branch's part of an LLM embedding.
    """

    def __init__(self, config: DualTokenConfig, name: str, width: int) -> None:
        super().__init__()
        sizes, seen = config.codebooks[name], config.conditions.get(name)
        self.codebook = FrozenCodebook(sizes)
        self.projector = CodeProjector(sizes.code_dim, width)
        self.depth_transformer = DepthTransformer(
            config.depth_transformer,
            sizes,
            state_dim=config.text_config.hidden_size,
            shared_classifier=config.shared_classifier,
            condition_dim=config.codebooks[seen].code_dim if seen else None,
        )


class Branches(nn.ModuleDict):
    """The branches of a model by name (an ablation lacks one); their embeddings are concatenated in order."""

    def __init__(self, config: DualTokenConfig) -> None:
        hidden_size, count = config.text_config.hidden_size, len(config.branches)
        edges = [hidden_size * index // count for index in range(count + 1)]
        widths = [end - start for start, end in pairwise(edges)]
        names = zip(config.branches, widths, strict=True)
        super().__init__({name: Branch(config, name, width) for name, width in names})
        self.conditions = config.conditions

    def __getitem__(self, name: str) -> Branch:
        return cast(Branch, super().__getitem__(name))

    def items(self) -> ItemsView[str, Branch]:
        return cast(ItemsView[str, Branch], super().items())

    def embed(self, codes: Mapping[str, Tensor]) -> Tensor:
        """LLM embeddings of codes (..., D): (..., H)."""
        parts = [branch.projector(branch.codebook.embed(codes[name])) for name, branch in self.items()]
        return torch.cat(parts, dim=-1)

    def condition(self, name: str, codes: Mapping[str, Tensor]) -> Tensor | None:
        """The features of the other branch's codes that a branch is conditioned on: (..., C), or None."""
        seen = self.conditions.get(name)
        return self[seen].codebook.embed(codes[seen]) if seen else None

    def predict(self, name: str, states: Tensor, codes: Mapping[str, Tensor]) -> Tensor:
        """Teacher-forced outputs of a depth transformer before its classifiers.

        States (T, H) of the LLM and codes (T, D) of all branches -> (T, D, W).
        """
        branch, condition = self[name], self.condition(name, codes)
        return branch.depth_transformer(states, codes[name], branch.codebook, condition)
