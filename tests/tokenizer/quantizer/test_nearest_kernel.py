"""The fused code search equals the plain one: in Triton's interpreter everywhere, compiled on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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


@pytest.mark.parametrize(
    "capability", [90, pytest.param(80, marks=pytest.mark.slow), pytest.param(100, marks=pytest.mark.slow)]
)
def test_the_kernel_compiles_for_gpus_that_are_not_here(capability, tmp_path, monkeypatch):
    """Full fp32 products without spilled registers, in a program small enough to compile in seconds."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module = pytest.importorskip("dualtoken.tokenizer.quantizer.nearest_kernel", reason="needs triton")
    assert capability in module.CAPABILITIES
    kernel = module.compile_ahead(capability)
    program = kernel.asm["ptx"]
    assert f".target sm_{capability}" in program
    assert kernel.asm["cubin"]
    assert "fma.rn.f32" in program
    assert not any(word in program for word in ("mma", "tf32", ".local"))
    assert program.count("\n") < 4000
    assert kernel.metadata.shared <= 48 * 1024, "more needs an opt-in that older GPUs refuse"


def test_the_kernel_is_launched_on_the_device_of_its_vectors(monkeypatch):
    module = pytest.importorskip("dualtoken.tokenizer.quantizer.nearest_kernel", reason="needs triton")
    current, launches = [0], []

    class OnDevice:
        """`torch.cuda.device_of` of a program with two GPUs."""

        def __init__(self, tensor):
            self.index = tensor.device.index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *_, **sizes: launches.append((current[-1], grid, sizes["num_codes"]))

    monkeypatch.setattr(torch.cuda, "device_of", OnDevice)
    monkeypatch.setattr(module, "nearest_kernel", Kernel())
    with FakeTensorMode():
        for index in (1, 0):
            vectors, book = (
                torch.empty(65, 4, device=f"cuda:{index}"),
                torch.empty(9, 4, device=f"cuda:{index}"),
            )
            assert module.nearest_codes_fused(vectors, book).device.index == index
    assert launches == [(1, (2,), 9), (0, (2,), 9)]
    assert current == [0]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, (2000, 16384, 32)])
def test_fused_search_equals_the_plain_one(size):
    check_fused_search(size, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_fused_search_on_the_second_gpu_while_the_first_is_current():
    assert torch.cuda.current_device() == 0
    check_fused_search((2000, 16384, 32), torch.device("cuda:1"))
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(500, 65536, 32), (500, 16384, 1152)])
def test_fused_search_in_large_codebooks(size):
    check_fused_search(size, torch.device("cuda"))


def check_fused_search(size, device):
    count, num_codes, dim = size
    vectors, book = torch.randn(count, dim, device=device), torch.randn(num_codes, dim, device=device)
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
