"""Checks that need a device to mean anything: for the tests marked `gpu`, and for `dualtoken doctor`.

Each raises RuntimeError where the device computes something else than it should, and returns what it found.
"""

import torch
from torch import Tensor

from .depth_transformer import DepthTransformer
from .linear_cross_entropy import linear_cross_entropy
from .settings import CodebookConfig, DepthTransformerConfig
from .visual_embedding import FrozenCodebook

#: More positions than a launch dimension of a GPU holds: 96 images of 27 x 27.
MANY_POSITIONS = 70_000
SIZES = DepthTransformerConfig(hidden_size=64, num_layers=2, num_heads=4, intermediate_size=64)
#: Largest relative error of a tensor, by dtype; in fp32 that of TF32 products.
TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 2e-2}


def prove_depth_transformer(
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    positions: int = MANY_POSITIONS,
    sizes: DepthTransformerConfig = SIZES,
    depth: int = 8,
) -> str:
    """A depth transformer and its loss over many positions equal those over parts of them, with gradients.

    Not in bf16 on a CPU, where torch sums a norm's gradients in bf16.
    """
    generator = torch.Generator().manual_seed(0)
    book = CodebookConfig(num_codes=16, code_dim=16, depth=depth)
    head = DepthTransformer(sizes, book, state_dim=32, shared_classifier=True)
    codebook = FrozenCodebook(book)
    for tensor in (*head.parameters(), *codebook.buffers()):
        tensor.data.copy_(
            torch.randn(tensor.shape, generator=generator) / max(tensor.shape[-1:], default=1) ** 0.5
        )
    head, codebook = head.to(device, dtype), codebook.to(device)
    states = torch.randn(positions, 32, generator=generator).to(device, dtype)
    codes = torch.randint(book.num_codes, (positions, book.depth), generator=generator).to(device)
    found = _loss_and_gradients(head, codebook, states, codes, positions)
    expected = _loss_and_gradients(head, codebook, states, codes, positions // 7)
    errors = {name: _relative_error(found[name], expected[name]) for name in found}
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= TOLERANCE[dtype]:
        raise RuntimeError(
            f"depth transformer over {positions} positions in {dtype}: {worst} differs by {errors[worst]:.1e}"
        )
    return (
        f"{positions} positions at once equal {positions // 7} (largest relative error {errors[worst]:.0e})"
    )


def _loss_and_gradients(
    head: DepthTransformer, codebook: FrozenCodebook, states: Tensor, codes: Tensor, together: int
) -> dict[str, Tensor]:
    """Losses and gradients, in fp32, of all positions, `together` of them at a time."""
    head.zero_grad()
    states = states.clone().requires_grad_()
    losses = []
    for part, targets in zip(states.split(together), codes.split(together), strict=True):
        outputs = head(part, targets, codebook).flatten(0, 1)
        total, each = linear_cross_entropy(outputs, head.classifiers[0].weight, targets.flatten())
        total.backward()
        losses.append(each)
    gradients = {name: one.grad for name, one in head.named_parameters()}
    return {"losses": torch.cat(losses), "states": states.grad, **gradients}


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())
