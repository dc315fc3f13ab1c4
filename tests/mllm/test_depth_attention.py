"""Depth attention: the explicit product on every device, over any number of positions."""

from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dualtoken.mllm import depth_attention
from dualtoken.mllm.depth_attention import attend_over_depths, attend_to_past
from dualtoken.mllm.depth_transformer import DepthTransformer
from dualtoken.mllm.gpu_proof import MANY_POSITIONS, prove_depth_transformer
from dualtoken.mllm.settings import CodebookConfig, DepthTransformerConfig
from dualtoken.mllm.visual_embedding import FrozenCodebook

SMALL = DepthTransformerConfig(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8)
LAUNCH_LIMIT = 65_535  # of a GPU's second and third launch dimension


class Products(TorchDispatchMode):
    """Records the names of all operators and the batch sizes of batched products."""

    def __init__(self):
        super().__init__()
        self.names, self.batches = set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        if func.overloadpacket.__name__ == "bmm":
            self.batches.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_no_fused_attention_and_no_batch_beyond_a_launch_dimension(training):
    """On the meta device, which is not a CPU and computes nothing."""
    book = CodebookConfig(num_codes=8, code_dim=4, depth=4)
    with torch.device("meta"):
        head, codebook = (
            DepthTransformer(SMALL, book, state_dim=4, shared_classifier=True),
            FrozenCodebook(book),
        )
        states = torch.zeros(MANY_POSITIONS, 4, requires_grad=training)
        codes = torch.zeros(MANY_POSITIONS, 4, dtype=torch.long)
    with Products() as seen, torch.set_grad_enabled(training):
        outputs = head(states, codes, codebook)
        if training:
            outputs.sum().backward()
    assert not [name for name in seen.names if "attention" in name]
    assert "bmm" in seen.names
    assert max(seen.batches) <= LAUNCH_LIMIT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [1, 3])
def test_it_equals_the_fused_kernel(dtype, parts, monkeypatch):
    monkeypatch.setattr(depth_attention, "MOST_PRODUCTS", 2 * 7 if parts == 1 else 5)
    inputs = [torch.randn(7, 2, 4, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
    found = attend_over_depths(*inputs)
    close = partial(
        torch.testing.assert_close, **({"rtol": 0.03, "atol": 0.03} if dtype == torch.bfloat16 else {})
    )
    close(found, expected)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, direction)
    for gradient, right in zip(torch.autograd.grad(found, inputs, direction), wanted, strict=True):
        close(gradient, right)
    q, k, v = inputs
    for depth in range(4):
        step = attend_to_past(q[:, :, depth], k[:, :, : depth + 1], v[:, :, : depth + 1])
        close(step, expected[:, :, depth])


def test_the_softmax_is_fp32_under_autocast_and_in_bf16():
    q, k, v = torch.randn(3, 50, 2, 8, 16).bfloat16()
    scores = q @ k.transpose(-1, -2) * 0.25
    scores = scores.masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), float("-inf"))
    expected = scores.float().softmax(dim=-1).bfloat16() @ v
    assert torch.equal(attend_over_depths(q, k, v), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attend_over_depths(q, k, v), expected)


def test_recomputed_layers_have_the_same_gradients(monkeypatch):
    monkeypatch.setattr(depth_attention, "MOST_PRODUCTS", 100)
    book = CodebookConfig(num_codes=8, code_dim=4, depth=4)
    head = DepthTransformer(SMALL, book, state_dim=4, shared_classifier=True)
    head.reset(std=0.5)
    found = []
    for recompute in (False, True):
        x = torch.linspace(-1, 1, 300 * 4 * 8).view(300, 4, 8).requires_grad_()
        layer = head.layers[0]
        output = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        found.append(torch.autograd.grad(output.square().sum(), [x, *layer.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_many_positions_at_once_equal_parts_of_them():
    """Attention, norms, code look-up and classifier loss, with all gradients."""
    assert "70000 positions" in prove_depth_transformer("cpu", torch.float32, sizes=SMALL, depth=3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [4, 16])
def test_many_positions_at_once_equal_parts_of_them_on_a_gpu(dtype, heads):
    prove_depth_transformer("cuda", dtype, sizes=DepthTransformerConfig(64 * heads // 4, 3, heads, 64))
