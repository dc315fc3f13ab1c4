"""The fused code search equals the plain one: in Triton's interpreter everywhere, compiled on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from dualtoken.tokenizer.quantizer import codebook

# Numbers of vectors, codes and dimensions: whole blocks, parts of blocks, fewer codes than one block.
SIZES = [(130, 200, 12), (64, 64, 32), (1, 7, 3), (200, 130, 40), (0, 5, 4)]

INTERPRETED = """
import torch
from dualtoken.tokenizer.quantizer.codebook import nearest_codes_in_chunks
from dualtoken.tokenizer.quantizer.nearest_kernel import nearest_codes_fused

for count, num_codes, dim in {sizes}:
    vectors, book = torch.randn(count, dim), torch.randn(num_codes, dim)
    book[num_codes // 2] = book[1]  # a tie
    vectors[:3] = book[1]
    fused = nearest_codes_fused(vectors, book)
    assert torch.equal(fused, nearest_codes_in_chunks(vectors, book)), (count, num_codes, dim)
"""


def test_interpreted_kernel_equals_the_plain_search():
    pytest.importorskip("triton")
    # The interpreter is chosen when the kernel is defined, so in a process of its own.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED.format(sizes=SIZES)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (2000, 16384, 32)])
def test_fused_search_equals_the_plain_one(size):
    count, num_codes, dim = size
    vectors, book = torch.randn(count, dim, device="cuda"), torch.randn(num_codes, dim, device="cuda")
    assert codebook._fused_search(vectors.device) is not None
    codes, plain = (
        search(vectors, book) for search in (codebook.nearest_codes, codebook.nearest_codes_in_chunks)
    )
    # Products are summed in another order: a code may differ only where two are equally far.
    distance = [(vectors - book[chosen]).square().sum(dim=1) for chosen in (codes, plain)]
    torch.testing.assert_close(distance[0], distance[1], rtol=1e-5, atol=1e-5)
    assert (codes == plain).float().mean() > 0.999 or not count


def test_a_kernel_that_fails_gives_way_to_the_plain_search(monkeypatch):
    def broken(*_):
        raise RuntimeError("no compiler")

    module = pytest.importorskip("dualtoken.tokenizer.quantizer.nearest_kernel", reason="needs triton")
    monkeypatch.setattr(module, "nearest_codes_fused", broken)
    with pytest.warns(UserWarning, match="no compiler"):
        assert codebook._fused_search.__wrapped__(torch.device("cpu")) is None
