"""Residual quantization: codes, moving averages, restarts, k-means, several processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from dualtoken.tokenizer import QuantizerConfig, ResidualQuantizer
from dualtoken.tokenizer.quantizer import codebook


def make(**changes) -> ResidualQuantizer:
    settings = {"num_codes": 16, "code_dim": 8, "depth": 3, "restart_unused_codes": False}
    return ResidualQuantizer(QuantizerConfig(**{**settings, **changes}))


both = pytest.mark.parametrize("shared", [True, False])


@both
def test_codes_are_the_nearest_of_each_depth(shared):
    quantizer, z = make(shared_codebook=shared).eval(), torch.randn(2, 3, 3, 8)
    out = quantizer(z)
    residual = z
    for depth in range(3):
        book = quantizer.codebook_tensor()[0 if shared else depth]
        codes = torch.cdist(residual, book.expand(2, 3, -1, -1)).argmin(dim=-1)
        assert torch.equal(out.codes[..., depth], codes)
        residual = residual - book[codes]
    torch.testing.assert_close(out.quantized, z - residual)


@both
def test_embed_is_the_sum_of_gathered_codes(shared):
    quantizer = make(shared_codebook=shared)
    codes = torch.randint(16, (2, 5, 3))
    books = quantizer.codebook_tensor()
    assert books.shape == (1 if shared else 3, 16, 8)
    expected = sum(books[0 if shared else depth][codes[..., depth]] for depth in range(3))
    torch.testing.assert_close(quantizer.embed(codes), expected)
    torch.testing.assert_close(quantizer.embed_per_depth(codes).sum(dim=-2), expected)
    quantizer.eval()
    z = torch.randn(1, 4, 4, 8)
    torch.testing.assert_close(quantizer.embed(quantizer(z).codes), quantizer(z).quantized)


def test_chunked_search_equals_unchunked_search(monkeypatch):
    vectors, book = torch.randn(101, 8), torch.randn(16, 8)
    whole = codebook.nearest_codes(vectors, book)
    monkeypatch.setattr(codebook, "MAX_DISTANCES", 100)
    assert torch.equal(codebook.nearest_codes(vectors, book), whole)


def test_draws_follow_the_error_not_the_frequency():
    vectors = torch.arange(1000.0).unsqueeze(1)
    error = torch.zeros(1000)
    error[[3, 7]] = torch.tensor([1.0, 3.0])
    drawn = codebook.draw_by_error(vectors, error, 4000, torch.Generator().manual_seed(0)).flatten()
    assert set(drawn.tolist()) == {3.0, 7.0}
    assert (drawn == 7.0).float().mean() == pytest.approx(0.75, abs=0.03)
    assert codebook.draw_by_error(vectors, torch.zeros(1000), 5).shape == (5, 1)


def test_a_common_and_nearly_constant_input_takes_few_codes():
    """95 % of all patches are an empty background; drawn by frequency they would take some 60 of 64 codes."""
    background = 0.1 * torch.randn(1900, 8) + 3.0
    z = torch.cat((background, 2.0 * torch.randn(100, 8))).view(1, 40, 50, 8)
    quantizer = make(num_codes=64, shared_codebook=False, restart_unused_codes=True, restart_every=5)
    quantizer.initialise_from(z)
    for _ in range(20):
        quantizer.train()(z)
    codes = quantizer.eval()(z).codes.flatten(0, 2)
    assert len(codes[:1900, 0].unique()) <= 12
    assert len(codes[1900:, 0].unique()) >= 40


def test_ties_go_to_the_lowest_index():
    book = torch.randn(4, 8)[[0, 1, 1, 0]]
    assert codebook.nearest_codes(book, book).tolist() == [0, 1, 1, 0]


@both
def test_moving_averages_against_dense_one_hot(shared):
    quantizer, decay = make(shared_codebook=shared, decay=0.9), 0.9
    books = quantizer.codebooks
    before = {name: getattr(books, name).clone() for name in ("vectors", "counts", "sums")}
    z = torch.randn(2, 4, 4, 8)
    codes = quantizer.train()(z).codes.flatten(0, 2)
    residual, counts, sums = z.flatten(0, 2), [], []
    for depth in range(3):
        one_hot = F.one_hot(codes[:, depth], 16).float()
        counts.append(one_hot.sum(dim=0))
        sums.append(one_hot.t() @ residual)
        residual = residual - before["vectors"][0 if shared else depth][codes[:, depth]]
    new_counts, new_sums = torch.stack(counts), torch.stack(sums)
    if shared:
        new_counts, new_sums = new_counts.sum(0, keepdim=True), new_sums.sum(0, keepdim=True)
    ema_counts = decay * before["counts"] + (1 - decay) * new_counts
    ema_sums = decay * before["sums"] + (1 - decay) * new_sums
    torch.testing.assert_close(books.counts, ema_counts)
    torch.testing.assert_close(books.sums, ema_sums)
    torch.testing.assert_close(books.vectors, ema_sums / ema_counts.unsqueeze(-1), rtol=1e-3, atol=1e-4)
    health = quantizer.read_health()
    expected = (torch.stack(counts) > 0).float().mean(dim=1)
    torch.testing.assert_close(health.usage, expected)
    assert (health.perplexity >= 1).all()
    assert (health.perplexity <= 16).all()
    assert quantizer.usage_counts.sum() == 0


@both
def test_restart_replaces_unused_codes_with_their_statistics(shared):
    quantizer = make(shared_codebook=shared, restart_unused_codes=True, restart_every=2)
    books = quantizer.codebooks
    books.vectors[:, 3:] = 1e4  # never chosen
    books.sums.copy_(books.vectors)
    books.counts[:, 3:] = 1e-6
    z = torch.randn(2, 4, 4, 8)
    quantizer.train()(z)
    assert (books.vectors[:, 3:].abs() > 1e2).any()
    quantizer(z)
    assert books.num_updates == 2
    assert books.vectors.abs().max() < 20
    torch.testing.assert_close(books.sums[:, 3:], books.vectors[:, 3:] * books.counts[:, 3:].unsqueeze(-1))
    first = books.vectors[0, 3:]
    if not shared:  # depth 0's inputs are the vectors themselves
        distances = torch.cdist(first, z.flatten(0, 2), compute_mode="donot_use_mm_for_euclid_dist")
        assert distances.min(dim=1).values.max() < 1e-3


@both
def test_k_means_lowers_the_error_and_is_deterministic(shared):
    z = torch.randn(4, 8, 8, 8) * torch.linspace(0.2, 2.0, 8)
    first, second = make(shared_codebook=shared).eval(), make(shared_codebook=shared).eval()
    error_before = (first(z).quantized - z).square().mean()
    first.initialise_from(z, seed=3)
    second.initialise_from(z, seed=3)
    assert torch.equal(first.codebook_tensor(), second.codebook_tensor())
    out = first(z)
    assert (out.quantized - z).square().mean() < 0.5 * error_before
    assert (out.codes[..., 0].flatten().bincount(minlength=16) > 0).float().mean() > 0.4
    first.train()(z)
    assert (first.codebook_tensor() - second.codebook_tensor()).abs().max() < 1.0
    make(shared_codebook=shared).initialise_from(z[:1, :1, :2])  # fewer vectors than codes


def test_disabled_passes_features_through():
    quantizer, z = make().train(), torch.randn(1, 2, 2, 8, requires_grad=True)
    quantizer.enabled = False
    before = quantizer.codebook_tensor()
    out = quantizer(z)
    assert out.quantized is z
    assert out.commitment_loss == 0
    assert out.codes.shape == (1, 2, 2, 3)
    assert torch.equal(quantizer.codebook_tensor(), before)


def test_fp32_under_autocast_and_casts():
    quantizer, z = make().eval(), torch.randn(2, 4, 4, 8)
    expected = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z).codes, expected.codes)
    before = quantizer.codebook_tensor()
    quantizer.to(torch.bfloat16).half().double()
    assert quantizer.codebook_tensor().dtype == torch.float32
    assert torch.equal(quantizer.codebook_tensor(), before)
    assert quantizer(z.bfloat16()).quantized.dtype == torch.bfloat16


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_does_not_update_twice(reentrant):
    plain, recomputed = make().train(), make().train()
    recomputed.load_state_dict(plain.state_dict())
    z = torch.randn(2, 4, 4, 8, requires_grad=True)
    plain(z).quantized.sum().backward()
    checkpoint(lambda x: recomputed(x).quantized, z, use_reentrant=reentrant).sum().backward()
    assert torch.equal(plain.codebook_tensor(), recomputed.codebook_tensor())
    assert torch.equal(plain.usage_counts, recomputed.usage_counts)


def test_two_processes_keep_equal_codebooks(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = Path(__file__).with_name("two_process_worker.py")
    commands = [[sys.executable, str(worker), str(rank), str(port), str(tmp_path)] for rank in range(2)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for name in ("shared", "separate", "staged"):
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2))
        for key, tensor in first.items():
            assert torch.equal(tensor, second[key]), key
    # One process with both batches takes the same step.
    starts = [torch.load(tmp_path / f"shared-start-{rank}.pt") for rank in range(2)]
    single = make().train()
    single.load_state_dict(starts[0][0])
    single(torch.cat([z for _, z in starts]))
    expected = torch.load(tmp_path / "shared-0.pt")["codebooks.vectors"]
    torch.testing.assert_close(single.codebook_tensor(), expected)


@both
def test_encoding_never_moves_the_codebook(shared):
    quantizer, z = make(shared_codebook=shared).train(), torch.randn(2, 3, 3, 8)
    before = {name: value.clone() for name, value in quantizer.named_buffers()}
    codes = quantizer.encode(z)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.named_buffers())
    assert torch.equal(codes, quantizer.eval()(z).codes)
