"""Peak signal-to-noise ratio as the tokenizer papers report it: 8-bit RGB, per image, then the mean."""

from __future__ import annotations

import math

import numpy as np

from .packages import optional_package


def psnr(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """PSNR in dB of two uint8 images (H, W, 3), over all pixels and channels; infinite for equal images.

    Computed by skimage with data range 255.
    """
    if np.array_equal(original, reconstruction):
        return math.inf  # without skimage's warning about a division by zero
    metrics = optional_package("skimage.metrics")
    return float(metrics.peak_signal_noise_ratio(original, reconstruction, data_range=255))
