"""LPIPS with VGG-16, per image, then the mean (arXiv 1801.03924)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...tokenizer.perceptual import PerceptualLoss
from .packages import optional_package


class PerceptualDistance:
    """LPIPS of pairs of images.

    Args:
        weights: a file with the state dict of `lpips.LPIPS(net="vgg")`; None fetches VGG-16.
        device: where it is computed.

    Raises:
        UserError: the package is missing, or the weights cannot be used.
    """

    def __init__(self, weights: Path | None = None, device: str | torch.device = "cpu") -> None:
        optional_package("lpips")
        file = None if weights is None else str(weights)
        self._network = PerceptualLoss(file, setting="--lpips-weights").to(device)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, originals: Tensor, reconstructions: Tensor) -> list[float]:
        """Two batches of uint8 images (B, 3, H, W) -> B distances."""
        scaled = [images.to(self._device).float() / 127.5 - 1 for images in (originals, reconstructions)]
        distances: list[float] = self._network(scaled[1], scaled[0]).double().cpu().tolist()
        return distances
