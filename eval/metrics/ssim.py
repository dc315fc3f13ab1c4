"""Structural similarity by skimage's definition, on RGB, per image, then the mean.

Two variants are in use and differ by about 0.01: with data range 1 on values from 0 to 1, and with data range
2 on the same values, as in LlamaGen's evaluation.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import avg_pool2d

from ...common.errors import UserError
from .base import PairMean

#: Name of the metric -> data range of values that lie in [0, 1].
DATA_RANGES = {"ssim": 1.0, "ssim_data_range_2": 2.0}
_WINDOW = 7


class Ssim(PairMean):
    """SSIM in a 7 x 7 uniform window without padding, mean of the channels; 1 for equal images.

    Covariances divide by 48, as in skimage and the papers; those of torchmetrics divide by 49.
    """

    def __init__(self, data_range: float = 1.0) -> None:
        super().__init__()
        self.data_range = data_range

    def values(self, originals: Tensor, reconstructions: Tensor) -> Tensor:
        height, width = originals.shape[-2:]
        if min(height, width) < _WINDOW:
            raise UserError(f"SSIM needs at least {_WINDOW} x {_WINDOW} pixels, got {width} x {height}")
        one, other = originals.double() / 255, reconstructions.double() / 255
        mean_one, mean_other = _window_mean(one), _window_mean(other)
        sample = _WINDOW**2 / (_WINDOW**2 - 1)
        variances = sample * (_window_mean(one**2 + other**2) - mean_one**2 - mean_other**2)
        covariance = sample * (_window_mean(one * other) - mean_one * mean_other)
        c1, c2 = (0.01 * self.data_range) ** 2, (0.03 * self.data_range) ** 2
        luminance = (2 * mean_one * mean_other + c1) / (mean_one**2 + mean_other**2 + c1)
        return (luminance * (2 * covariance + c2) / (variances + c2)).mean(dim=(1, 2, 3))


def _window_mean(images: Tensor) -> Tensor:
    return avg_pool2d(images, _WINDOW, stride=1)
