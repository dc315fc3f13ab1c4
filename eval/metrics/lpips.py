"""LPIPS with VGG-16, per image, then the mean (arXiv 1801.03924)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...common.packages import optional_package
from ...tokenizer.perceptual import PerceptualLoss
from .base import PairMean


class Lpips(PairMean):
    """LPIPS of pairs of images; torchmetrics' class downloads VGG-16.

    Args:
        weights: a file with the state dict of `lpips.LPIPS(net="vgg")`.

    Raises:
        UserError: the package is missing, or the weights cannot be used.
    """

    def __init__(self, weights: Path, device: str | torch.device = "cpu") -> None:
        super().__init__()
        optional_package("lpips")
        self.network = PerceptualLoss(str(weights), setting="--lpips-weights").to(device)
        self._network_device = torch.device(device)

    @torch.inference_mode()
    def values(self, originals: Tensor, reconstructions: Tensor) -> Tensor:
        pair = [
            images.to(self._network_device).float() / 127.5 - 1 for images in (reconstructions, originals)
        ]
        distances: Tensor = self.network(*pair)
        return distances
