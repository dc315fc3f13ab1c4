"""The plain attention that trains on a CPU equals torch's own, in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dualtoken.tokenizer.attention import attend


@pytest.mark.parametrize("causal", [False, True])
def test_training_and_inference_agree_with_torch(causal: bool) -> None:
    query, key, value = inputs = [torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3)]
    reference = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    trained = attend(query, key, value, causal)
    torch.testing.assert_close(trained, reference)
    with torch.no_grad():
        torch.testing.assert_close(attend(query, key, value, causal), reference)
    direction = torch.randn_like(reference)
    expected = torch.autograd.grad(reference, inputs, direction)
    for gradient, wanted in zip(torch.autograd.grad(trained, inputs, direction), expected, strict=True):
        torch.testing.assert_close(gradient, wanted)
