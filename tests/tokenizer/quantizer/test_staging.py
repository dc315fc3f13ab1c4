"""Codebooks follow accepted steps only: statistics are collected in forward passes and applied afterwards."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dualtoken.tokenizer import QuantizerConfig, ResidualQuantizer

KINDS: dict[str, dict[str, Any]] = {
    "shared": {},
    "separate": {"shared_codebook": False},
    "at each depth": {"update_each_depth": True},
    "restarting": {"restart_unused_codes": True, "restart_every": 1, "restart_threshold": 0.9},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, staged: bool = True) -> ResidualQuantizer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"num_codes": 16, "code_dim": 8, "depth": 3, "restart_unused_codes": False}
    quantizer = ResidualQuantizer(QuantizerConfig(**{**settings, **KINDS[kind]})).train()
    quantizer.staged = staged
    return quantizer


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 4, 4, 8, generator=torch.Generator().manual_seed(seed))


def buffers(quantizer: ResidualQuantizer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in quantizer.named_buffers()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@every_kind
def test_one_pass_gives_the_same_codebooks_at_once_and_staged(kind: str) -> None:
    results = []
    for staged in (False, True):
        quantizer = make(kind, staged)
        for seed in (1, 2):
            torch.manual_seed(seed)
            quantizer(images(seed))
            quantizer.apply_updates()
        results.append(buffers(quantizer))
    assert_equal(*results)


@every_kind
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_rejected_step_leaves_no_trace(kind: str, broken: float) -> None:
    quantizer = make(kind)
    quantizer(images(1))
    quantizer.apply_updates()
    before = buffers(quantizer)
    z = images(2)
    z[0, 0, 0, 0] = broken
    quantizer(images(3))
    quantizer(z)
    quantizer(torch.full_like(z, broken))
    quantizer.discard_updates()
    assert_equal(before, buffers(quantizer))
    quantizer.apply_updates()
    assert_equal(before, buffers(quantizer))


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_the_passes_of_a_step_count_as_one(kind: str) -> None:
    passes, whole = make(kind), make(kind)
    for seed in (1, 2, 3):
        passes(images(seed))
    passes.apply_updates()
    whole(torch.cat([images(seed) for seed in (1, 2, 3)]))
    whole.apply_updates()
    for name, value in buffers(whole).items():
        torch.testing.assert_close(buffers(passes)[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert passes.codebooks.num_updates == 1


@every_kind
def test_non_finite_inputs_change_no_codebook_without_staging_either(kind: str) -> None:
    quantizer = make(kind, staged=False)
    z = images()
    quantizer(z)
    before = {name: buffers(quantizer)[f"codebooks.{name}"] for name in ("vectors", "counts", "sums")}
    quantizer(torch.full_like(z, math.nan))
    after = {name: buffers(quantizer)[f"codebooks.{name}"] for name in before}
    if kind == "restarting":  # counts of unused codes are raised in any step
        assert all(value.isfinite().all() for value in after.values())
    else:
        assert_equal(before, after)


def test_candidates_are_a_sample_of_all_passes() -> None:
    """A pass replaces the candidates of earlier ones with the probability of its share in the error."""
    settings = {"num_codes": 4000, "code_dim": 1, "depth": 1, "restart_every": 1}
    quantizer = ResidualQuantizer(QuantizerConfig(**settings)).train()
    quantizer.staged = True
    quantizer.codebooks.vectors.zero_()
    for value in (1.0, 2.0, 1.0):  # errors 1, 4 and 1
        quantizer(torch.full((1, 4, 4, 1), value))
    assert quantizer._statistics is not None
    candidates = quantizer._statistics.candidates
    assert candidates is not None
    assert (candidates == 2.0).float().mean() == pytest.approx(4 / 6, abs=0.05)


@pytest.mark.parametrize("reentrant", [True, False])
@every_kind
def test_recomputed_passes_are_not_counted_and_find_the_same_codes(kind: str, reentrant: bool) -> None:
    plain, recomputed = make(kind), make(kind)
    z, found = images().requires_grad_(), []

    def run(x: Tensor) -> Tensor:
        output = recomputed(x)
        found.append(output.codes)
        return output.quantized + output.commitment_loss

    torch.manual_seed(1)
    plain(z)
    torch.manual_seed(1)
    checkpoint(run, z, use_reentrant=reentrant).sum().backward()
    assert len(found) == 2 or not reentrant  # which stops once it has all that it needs
    if kind != "at each depth":  # which moves while it quantizes
        assert torch.equal(found[0], found[-1])
    plain.apply_updates()
    recomputed.apply_updates()
    assert_equal(buffers(plain), buffers(recomputed))


@every_kind
def test_evaluation_collects_nothing(kind: str) -> None:
    quantizer = make(kind)
    before = buffers(quantizer)
    quantizer.eval()(images())
    quantizer.train().encode(images())
    quantizer.apply_updates()
    assert_equal(before, buffers(quantizer))


def test_a_broken_image_does_not_break_the_initialisation() -> None:
    quantizer, z = make("separate"), images()
    quantizer.initialise_from(torch.cat([z, torch.full_like(z, math.nan)]))
    expected = make("separate")
    expected.initialise_from(z)
    assert torch.equal(quantizer.codebook_tensor(), expected.codebook_tensor())
