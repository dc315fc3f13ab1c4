"""FID: agrees with the direct formula and torch-fidelity, and does not depend on batches or processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from dualtoken.eval.metrics.fid import FeatureStatistics, InceptionFeatures, frechet_distance
from dualtoken.tokenizer import UserError


def features(seed: int, count: int = 300, size: int = 24) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    mixed = generator.normal(size=(count, size)) @ generator.normal(size=(size, size))
    return torch.from_numpy(mixed + generator.normal(size=size)).float()


def gathered(values: torch.Tensor, batch: int = 64) -> FeatureStatistics:
    statistics = FeatureStatistics(values.shape[1])
    for part in values.split(batch):
        statistics.update(part)
    return statistics


def direct(one: torch.Tensor, other: torch.Tensor) -> float:
    a, b = one.double().numpy(), other.double().numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return shift + np.trace(first + second - 2 * scipy.linalg.sqrtm(first @ second).real)


def test_it_is_the_formula() -> None:
    one, other = features(0), features(1)
    assert frechet_distance(gathered(one), gathered(other)) == pytest.approx(direct(one, other), abs=1e-6)


def test_statistics_are_those_of_all_features_at_once() -> None:
    values = features(0) + 1000  # far from zero, where summing squares would cancel
    statistics = gathered(values, 7)
    count, mean, covariance = statistics.compute()
    assert count == statistics.count == len(values)
    np.testing.assert_allclose(mean, values.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(values.double().numpy(), rowvar=False), rtol=1e-9)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_many_processes_equal_one(world: int) -> None:
    one, other = features(0), features(1)
    sides = []
    for values in (one, other):
        merged = FeatureStatistics(values.shape[1])
        for rank in range(world):
            merged.merge_state(gathered(values[rank::world], 16))
        sides.append(merged)
    single = frechet_distance(gathered(one), gathered(other))
    assert frechet_distance(*sides) == pytest.approx(single, abs=1e-9)


def test_an_empty_share_changes_nothing() -> None:
    whole = gathered(features(0))
    before = whole.moments.clone()
    whole.merge_state(FeatureStatistics(24))
    whole.update(torch.empty(0, 24))
    assert torch.equal(whole.moments, before)


def test_equal_sets_have_distance_0_and_a_shift_its_square() -> None:
    one = features(0)
    assert frechet_distance(gathered(one), gathered(one)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(gathered(one), gathered(one + 2)) == pytest.approx(4 * 24, rel=1e-6)


def test_fewer_images_than_features() -> None:
    one, other = features(0, 10), features(1, 10)
    found = frechet_distance(gathered(one), gathered(other))
    assert found == pytest.approx(direct(one, other), abs=1e-3)


def held(statistics: Any) -> int:
    """Bytes of all states."""
    return sum(state.nbytes for state in statistics.metric_state.values())


def test_memory_does_not_grow_with_the_images() -> None:
    statistics = gathered(features(0, 20))
    size = held(statistics)
    statistics.update(features(1, 5000))
    assert held(statistics) == size


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least two images"):
        frechet_distance(FeatureStatistics(24), gathered(features(0)))
    with pytest.raises(UserError, match="24 and 8"):
        frechet_distance(gathered(features(0)), gathered(features(0, size=8)))
    with pytest.raises(UserError, match="24 and 8"):
        gathered(features(0)).update(features(0, size=8))


def test_torch_fidelity_finds_the_same_on_the_same_features() -> None:
    fid = pytest.importorskip("torch_fidelity.metric_fid")
    one, other = features(0), features(1)
    theirs = fid.fid_statistics_to_metric(
        fid.fid_features_to_statistics(one), fid.fid_features_to_statistics(other), verbose=False
    )
    assert frechet_distance(gathered(one), gathered(other)) == pytest.approx(
        theirs["frechet_inception_distance"], abs=1e-3
    )


def test_inception_features_are_torch_fidelitys(tmp_path: Path) -> None:
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    weights = tmp_path / "inception.pth"
    network = inception.FeatureExtractorInceptionV3.__new__(inception.FeatureExtractorInceptionV3)
    with pytest.MonkeyPatch.context() as patch:  # random weights in place of a download
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        network.__init__("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), weights)
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        (expected,) = network.eval()(images)
    torch.testing.assert_close(InceptionFeatures(weights)(images), expected)


def test_missing_inception_weights(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity")
    with pytest.raises(UserError, match="do not exist; give pt_inception"):
        InceptionFeatures(tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be used"):
        InceptionFeatures(tmp_path / "broken.pth")
