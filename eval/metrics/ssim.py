"""Structural similarity by skimage, on RGB, per image, then the mean.

Two variants are in use and differ by about 0.01, so each has its own name: with data range 1, which fits
values from 0 to 1, and with data range 2 on the same values, which is what LlamaGen's evaluation computes.
"""

from __future__ import annotations

import numpy as np

from ...common.errors import UserError
from .packages import optional_package

#: Name of the figure -> data range handed to skimage.
DATA_RANGES = {"ssim": 1.0, "ssim_data_range_2": 2.0}
_WINDOW = 7


def ssim(original: np.ndarray, reconstruction: np.ndarray, data_range: float = 1.0) -> float:
    """SSIM of two uint8 images (H, W, 3), which are scaled to [0, 1] first: a 7 x 7 uniform window, mean of
    the channels. 1 for equal images. UserError for images smaller than the window.
    """
    if min(original.shape[:2]) < _WINDOW:
        height, width = original.shape[:2]
        raise UserError(f"SSIM needs images of {_WINDOW} x {_WINDOW} pixels or more, got {width} x {height}")
    metrics = optional_package("skimage.metrics")
    scaled = (image.astype(np.float64) / 255 for image in (original, reconstruction))
    return float(
        metrics.structural_similarity(*scaled, data_range=data_range, channel_axis=-1, win_size=_WINDOW)
    )
