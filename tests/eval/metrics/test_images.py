"""PSNR, SSIM, LPIPS and the running mean: known values and merging."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dualtoken.eval.metrics import packages
from dualtoken.eval.metrics.mean import RunningMean
from dualtoken.tokenizer import UserError


def picture(seed: int, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_a_mean_of_two_halves_is_the_mean_of_the_whole() -> None:
    values = [1.0, 2.5, math.inf, -4.0, 7.0, math.nan]
    whole, left, right = RunningMean(), RunningMean(), RunningMean()
    whole.update(values)
    left.update(values[:2])
    right.update(values[2:])
    left.merge(right)
    assert left == whole
    assert whole.value == pytest.approx(6.5 / 4)
    assert whole.not_finite == 2
    assert RunningMean().value is None


def test_psnr_of_a_constant_difference() -> None:
    pytest.importorskip("skimage")
    from dualtoken.eval.metrics.psnr import psnr

    grey = np.full((8, 8, 3), 100, dtype=np.uint8)
    assert psnr(grey, grey + 5) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(grey, grey) == math.inf


def test_ssim_variants() -> None:
    pytest.importorskip("skimage")
    from dualtoken.eval.metrics.ssim import DATA_RANGES, ssim

    one, other = picture(0), picture(1)
    blend = (0.7 * one + 0.3 * other).astype(np.uint8)
    for data_range in DATA_RANGES.values():
        assert ssim(one, one, data_range) == pytest.approx(1)
        assert ssim(one, other, data_range) < ssim(one, blend, data_range) < 1
    # The larger range makes the stabilising constants larger, and so the figure more lenient.
    assert ssim(one, blend, 1.0) < ssim(one, blend, 2.0)
    with pytest.raises(UserError, match="7 x 7"):
        ssim(picture(0, 6), picture(1, 6))


def test_ssim_with_range_1_is_skimage_on_bytes() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    from dualtoken.eval.metrics.ssim import ssim

    one, other = picture(0), picture(1)
    direct = metrics.structural_similarity(one, other, channel_axis=-1, data_range=255)
    assert ssim(one, other) == pytest.approx(direct, abs=1e-9)


def test_lpips_takes_local_weights(tmp_path: Path) -> None:
    lpips = pytest.importorskip("lpips")
    from dualtoken.eval.metrics.lpips import PerceptualDistance

    network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False).eval()
    torch.save(network.state_dict(), tmp_path / "lpips.pt")
    distance = PerceptualDistance(tmp_path / "lpips.pt")
    images = torch.from_numpy(np.stack([picture(n, 32) for n in range(2)])).permute(0, 3, 1, 2)
    assert distance(images, images) == pytest.approx([0, 0], abs=1e-6)
    scaled = images.float() / 127.5 - 1
    with torch.no_grad():
        expected = network(scaled.flip(0), scaled).flatten().tolist()
    assert distance(images, images.flip(0)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="--lpips-weights"):
        PerceptualDistance(tmp_path / "none.pt")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(UserError, match=r"scikit-image is needed .* pip install '\.\[eval\]'"):
        packages.optional_package("skimage.metrics")
    with pytest.raises(UserError, match=r"no_such_package is needed .* pip install no_such_package"):
        packages.optional_package("no_such_package.part")
