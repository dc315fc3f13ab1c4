"""Quality of reconstructions: PSNR, SSIM and LPIPS of pairs, rFID of sets."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..metrics.base import PairMean
from ..metrics.fid import INCEPTION_FILE, FeatureStatistics, InceptionFeatures, frechet_distance
from ..metrics.lpips import Lpips
from ..metrics.psnr import Psnr
from ..metrics.ssim import DATA_RANGES, Ssim
from .batch import Batch
from .family import Family, Subject, Unavailable, Values


class Pairs(Family):
    """Means over pairs of images, by name."""

    needs_reconstruction = True
    metrics: Mapping[str, PairMean]

    def update(self, batch: Batch) -> None:
        assert batch.reconstructions is not None
        for metric in self.metrics.values():
            metric.update(batch.originals, batch.reconstructions)

    def compute(self) -> Values:
        return {name: metric.compute()["mean"] for name, metric in self.metrics.items()}


class PsnrFamily(Pairs):
    """PSNR, and the number of identical reconstructions."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.metrics = {"psnr": Psnr()}

    def compute(self) -> Values:
        identical = self.metrics["psnr"].compute()["not_finite"]
        if identical:
            self.notes.append(f"{identical} images are identical: their PSNR is infinite and not in the mean")
        return {**super().compute(), "psnr_identical": float(identical)}


class SsimFamily(Pairs):
    """Both variants of SSIM."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.metrics = {name: Ssim(data_range) for name, data_range in DATA_RANGES.items()}


class LpipsFamily(Pairs):
    """LPIPS with weights from disk."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        weights = subject.options.lpips_weights
        if weights is None:
            raise Unavailable("lpips_vgg", 'needs --lpips-weights, the state dict of lpips.LPIPS(net="vgg")')
        self.metrics = {"lpips_vgg": Lpips(weights, subject.tokenizer.device)}


class RfidFamily(Family):
    """FID between the tokenizer's input images and their reconstructions."""

    needs_reconstruction = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        options, side = subject.options, subject.tokenizer.config.image_size
        if options.feature_extractor is not None:
            self._extractor = options.feature_extractor
        elif options.fid_weights is not None:
            self._extractor = InceptionFeatures(options.fid_weights, subject.tokenizer.device)
        else:
            raise Unavailable("rfid", f"needs --fid-weights, torch-fidelity's {INCEPTION_FILE}")
        num_features = self._extractor(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]
        self._sides = FeatureStatistics(num_features), FeatureStatistics(num_features)

    def update(self, batch: Batch) -> None:
        assert batch.reconstructions is not None
        for side, images in zip(self._sides, (batch.originals, batch.reconstructions), strict=True):
            side.update(self._extractor(images))

    def compute(self) -> Values:
        (count, mean, _), _ = (side.compute() for side in self._sides)
        if count < 2:
            self.notes.append("rfid is null: it needs at least two images")
            return {"rfid": None}
        if count <= len(mean):
            self.notes.append(
                f"rfid of {count} images with {len(mean)} features is biased upwards; compare it only with "
                "values on the same images (papers: 50,000)"
            )
        return {"rfid": frechet_distance(*self._sides)}
