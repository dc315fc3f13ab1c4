"""Peak signal-to-noise ratio as the tokenizer papers report it: 8-bit RGB, per image, then the mean."""

from __future__ import annotations

from torch import Tensor

from .base import PairMean


class Psnr(PairMean):
    """PSNR in dB over all pixels and channels; infinite for equal images, so excluded from the mean, in which
    torchmetrics' class would include it."""

    def values(self, originals: Tensor, reconstructions: Tensor) -> Tensor:
        from torchmetrics.functional.image import peak_signal_noise_ratio

        pair = reconstructions.double(), originals.double()
        return peak_signal_noise_ratio(*pair, data_range=255.0, reduction="none", dim=(1, 2, 3))
