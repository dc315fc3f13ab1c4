"""Codebook health: what is measured, and which alarm it raises."""

from __future__ import annotations

import pytest
import torch

from dualtoken.tokenizer import QuantizerConfig, ResidualQuantizer
from dualtoken.train.objectives.tokenizer.codebook_health import health_alarms, health_metrics, health_summary

SETTINGS = {"num_codes": 16, "code_dim": 8, "depth": 3, "shared_codebook": False}


def trained(features: torch.Tensor, steps: int = 3, initialise: bool = True, **changes) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(QuantizerConfig(**{**SETTINGS, **changes})).train()
    if initialise:
        quantizer.initialise_from(features)
    for _ in range(steps):
        quantizer(features)
    return quantizer


def alarms(quantizer: ResidualQuantizer) -> dict[str, str]:
    return health_alarms("pixel", quantizer.read_health(), quantizer.config)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(4, 8, 8, 8) + 2.0


def test_error_is_the_share_of_the_variance_left_after_each_depth(features: torch.Tensor) -> None:
    quantizer = trained(features, steps=0, decay=0.0)
    codes = quantizer.eval()(features).codes
    partial = quantizer.embed_per_depth(codes).cumsum(dim=-2)
    left = (features.unsqueeze(-2) - partial).square().sum(-1).mean(dim=(0, 1, 2))
    variance = features.flatten(0, 2).var(dim=0, unbiased=False).sum()
    quantizer.train()(features)
    health = quantizer.read_health()
    torch.testing.assert_close(health.error, left / variance, rtol=1e-4, atol=1e-5)
    assert health.num_vectors == 256
    assert quantizer.read_health().num_vectors == 0


def test_a_healthy_codebook_raises_no_alarm(features: torch.Tensor) -> None:
    quantizer = trained(features)
    assert alarms(quantizer) == {}


def test_restarts_are_counted(features: torch.Tensor) -> None:
    quantizer = trained(features, steps=0, restart_unused_codes=True, restart_every=2)
    quantizer.codebooks.vectors[:, 10:] = 1e4
    quantizer.codebooks.sums[:, 10:] = 1e4
    quantizer.codebooks.counts[:, 10:] = 0.0
    for _ in range(2):
        quantizer(features)
    assert quantizer.read_health().restarts.tolist() == [6, 6, 6]


def test_unused_codes_name_the_setting_to_change(features: torch.Tensor) -> None:
    for restart, remedy in ((False, "set restart_unused_codes"), (True, "raise restart_threshold")):
        quantizer = trained(features, steps=0, restart_unused_codes=restart)
        quantizer.codebooks.vectors[:, 4:] = 1e4
        quantizer.codebooks.sums[:, 4:] = 1e4
        quantizer.trainable = True
        quantizer(features)
        found = alarms(quantizer)
        assert remedy in found["pixel/usage/1"]
        assert "25%" in found["pixel/usage/1"]


def test_too_few_inputs_say_nothing_about_unused_codes() -> None:
    features = torch.randn(1, 2, 2, 8)
    assert alarms(trained(features, steps=1, initialise=False)).keys() <= {"pixel/blown-up"}


def test_codebooks_that_lag_behind_the_features_are_named(features: torch.Tensor) -> None:
    quantizer = trained(features, steps=0)
    quantizer.codebooks.vectors.mul_(100.0)
    quantizer(features)
    assert "k-means" in alarms(quantizer)["pixel/blown-up"]


def test_a_depth_that_helps_nothing_is_named(features: torch.Tensor) -> None:
    quantizer = trained(features, steps=0)
    quantizer.codebooks.vectors[1] = 0.0  # the second depth describes nothing
    quantizer(features)
    assert "pixel/error/2" in alarms(quantizer)


def test_metrics_are_named_by_branch_and_depth(features: torch.Tensor) -> None:
    health = trained(features).read_health()
    metrics = health_metrics("semantic", health)
    assert {"semantic_usage/1", "semantic_perplexity/3", "semantic_error/2", "semantic_restarts"} <= set(
        metrics
    )
    assert "semantic codes" in health_summary("semantic", health)
