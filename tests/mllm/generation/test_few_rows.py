"""Products of few rows: the same numbers as torch's own linear layers, with and without a bias."""

import pytest
import torch
from torch import nn

from dualtoken.mllm.generation.few_rows import FewRows


@pytest.mark.parametrize(
    "shape", [(256,), (1, 256), (2, 256), (2, 1, 256), (1, 3, 256), (4, 256), (9, 256), (0, 256)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_few_rows_equal_the_plain_product(shape, bias):
    layer, x = nn.Linear(256, 300, bias=bias), torch.randn(shape)
    expected = layer(x)
    with FewRows():
        product = layer(x)
    assert product.shape == expected.shape
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)
