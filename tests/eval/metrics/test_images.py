"""PSNR, SSIM, LPIPS and the mean over pairs of images: known values and merging."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dualtoken.tokenizer import UserError

pytest.importorskip("torchmetrics")

from dualtoken.eval.metrics.base import PairMean
from dualtoken.eval.metrics.lpips import Lpips
from dualtoken.eval.metrics.psnr import Psnr
from dualtoken.eval.metrics.ssim import DATA_RANGES, Ssim


def random_image(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def as_batch(*images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def of_pair(metric: PairMean, one: np.ndarray, other: np.ndarray) -> float:
    """A metric's number for one pair of images."""
    return float(metric.values(as_batch(one), as_batch(other)))


class Given(PairMean):
    """The numbers themselves."""

    def values(self, originals: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        return originals


def test_a_mean_of_two_halves_is_the_mean_of_all() -> None:
    values = torch.tensor([1.0, 2.5, math.inf, -4.0, 7.0, math.nan])
    whole, left, right = Given(), Given(), Given()
    whole.update(values, values)
    left.update(values[:2], values[:2])
    right.update(values[2:], values[2:])
    left.merge_state(right)
    assert left.compute() == whole.compute()
    assert whole.compute() == {"mean": pytest.approx(6.5 / 4), "count": 4, "not_finite": 2}
    assert Given().compute()["mean"] is None


def test_psnr_of_a_constant_difference() -> None:
    grey = np.full((8, 8, 3), 100, dtype=np.uint8)
    assert of_pair(Psnr(), grey, grey + 5) == pytest.approx(20 * math.log10(255 / 5))
    assert of_pair(Psnr(), grey, grey) == math.inf


def test_psnr_is_skimages() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    one, other = random_image(0), random_image(1)
    direct = metrics.peak_signal_noise_ratio(one, other, data_range=255)
    assert of_pair(Psnr(), one, other) == pytest.approx(direct, abs=1e-6)


def test_ssim_variants() -> None:
    one, other = random_image(0), random_image(1)
    blend = (0.7 * one + 0.3 * other).astype(np.uint8)
    for data_range in DATA_RANGES.values():
        ssim = Ssim(data_range)
        assert of_pair(ssim, one, one) == pytest.approx(1)
        assert of_pair(ssim, one, other) < of_pair(ssim, one, blend) < 1
    # The larger range makes the stabilising constants larger, and so the value more lenient.
    assert of_pair(Ssim(1.0), one, blend) < of_pair(Ssim(2.0), one, blend)
    with pytest.raises(UserError, match="7 x 7"):
        of_pair(Ssim(), random_image(0, 6), random_image(1, 6))


def test_ssim_is_skimages_for_every_image_of_a_batch() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    ones, others = [random_image(n) for n in range(3)], [random_image(n + 3) for n in range(3)]
    for data_range in DATA_RANGES.values():
        found = Ssim(data_range).values(as_batch(*ones), as_batch(*others))
        for value, one, other in zip(found.tolist(), ones, others, strict=True):
            direct = metrics.structural_similarity(one, other, channel_axis=-1, data_range=255 * data_range)
            assert value == pytest.approx(direct, abs=1e-9)


def test_lpips_takes_local_weights(tmp_path: Path) -> None:
    lpips = pytest.importorskip("lpips")
    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    torch.save(network.state_dict(), tmp_path / "lpips.pt")
    distance = Lpips(tmp_path / "lpips.pt")
    images = as_batch(random_image(0, 32), random_image(1, 32))
    assert distance.values(images, images).tolist() == pytest.approx([0, 0], abs=1e-6)
    scaled = images.float() / 127.5 - 1
    with torch.no_grad():
        expected = network(scaled.flip(0), scaled).flatten().tolist()
    assert distance.values(images, images.flip(0)).tolist() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="--lpips-weights"):
        Lpips(tmp_path / "none.pt")
