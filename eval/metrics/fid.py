"""Fréchet Inception distance (arXiv 1706.08500), in bounded memory and the same for any number of processes.

Features are torch-fidelity's InceptionV3, through torchmetrics with `antialias=False`: that equals
torch-fidelity and ADM's evaluator on the same images, which torchmetrics' own default does not. Only the
number of images, the mean and the scatter matrix are kept, in fp64: 34 MB for 2048 features, whatever the
number of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...common.errors import UserError, first_line
from .packages import optional_package

#: uint8 images (B, 3, H, W) -> features (B, F)
FeatureExtractor = Callable[[Tensor], Tensor]
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"


@dataclass
class FeatureStatistics:
    """Number, mean (F,) and scatter matrix (F, F) of feature vectors, in fp64 on the CPU."""

    count: int = 0
    mean: Tensor | None = None
    scatter: Tensor | None = None

    def update(self, features: Tensor) -> None:
        """Add features (B, F) of a batch."""
        if features.dim() != 2:
            raise UserError(f"features have shape {tuple(features.shape)}; FID takes (images, features)")
        if not len(features):
            return
        values = features.detach().double()
        mean = values.mean(dim=0)
        centred = values - mean
        self.merge(FeatureStatistics(len(values), mean.cpu(), (centred.T @ centred).cpu()))

    def merge(self, other: FeatureStatistics) -> None:
        """Add the statistics of other images (the pairwise update of Chan, Golub and LeVeque)."""
        if other.mean is None or other.scatter is None:
            return
        if self.mean is None or self.scatter is None:
            self.count, self.mean, self.scatter = other.count, other.mean.clone(), other.scatter.clone()
            return
        if self.mean.shape != other.mean.shape:
            raise UserError(
                f"features of {len(self.mean)} and {len(other.mean)} dimensions cannot be put together; "
                "use one feature extractor"
            )
        count = self.count + other.count
        difference = other.mean - self.mean
        self.mean += difference * (other.count / count)
        self.scatter += other.scatter
        self.scatter.addr_(difference, difference, alpha=self.count * other.count / count)
        self.count = count

    def covariance(self) -> Tensor:
        """The unbiased covariance (F, F). UserError for fewer than two images."""
        if self.scatter is None or self.count < 2:
            raise UserError(f"FID needs at least two images on each side, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """|m1 − m2|² + tr(C1 + C2 − 2 (C1 C2)^½) of two sets of features; never below 0.

    The trace of the root is taken from the singular values of C1^½ C2^½, which stays exact for the singular
    covariances of fewer images than features, where a matrix square root turns complex.
    """
    root_one, root_other = _root(one.covariance()), _root(other.covariance())
    assert one.mean is not None
    assert other.mean is not None
    if one.mean.shape != other.mean.shape:
        raise UserError(f"FID compares equal features, got {len(one.mean)} and {len(other.mean)} dimensions")
    shift = (one.mean - other.mean).square().sum()
    spread = root_one.square().sum() + root_other.square().sum()
    overlap = torch.linalg.svdvals(root_one @ root_other).sum()
    return max(0.0, float(shift + spread - 2 * overlap))


def _root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a covariance; eigenvalues below 0 are rounding and become 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


class InceptionFeatures:
    """The 2048 pooled features of torch-fidelity's InceptionV3.

    Args:
        weights: the file pt_inception-2015-12-05-6726825d.pth of torch-fidelity's releases. It is never
        fetched.
        device: where it is computed.

    Raises:
        UserError: a package is missing, or the file is missing or no such weights.
    """

    size = 2048

    def __init__(self, weights: Path, device: str | torch.device = "cpu") -> None:
        optional_package("torch_fidelity")
        fid: Any = optional_package("torchmetrics.image.fid")
        if not weights.is_file():
            raise UserError(f"the Inception weights {str(weights)!r} do not exist; give {INCEPTION_FILE}")
        try:
            network = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights), antialias=False)
        except Exception as error:  # a broken or foreign file fails in several ways inside torch.load
            raise UserError(
                f"the Inception weights {str(weights)!r} cannot be used ({first_line(error)}); give "
                f"{INCEPTION_FILE}"
            ) from error
        self._network = network.to(device).eval().requires_grad_(False)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (B, 3, H, W) -> features (B, 2048) fp32."""
        features: Tensor = self._network(images.to(self._device))
        return features
