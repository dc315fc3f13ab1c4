"""Fréchet Inception distance (arXiv 1706.08500), in bounded memory and the same for any number of processes.

Features are torch-fidelity's InceptionV3, through torchmetrics with `antialias=False`: that equals
torch-fidelity and ADM's evaluator on the same images, unlike torchmetrics' default. Only the number of
images, the mean and the scatter matrix are kept, in fp64: 34 MB for 2048 features.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ...common.errors import UserError, first_line
from ...common.packages import optional_package
from .base import Metric

#: uint8 images (B, 3, H, W) -> features (B, F)
FeatureExtractor = Callable[[Tensor], Tensor]
INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"


class FeatureStatistics(Metric):
    """Number, mean and scatter matrix of feature vectors of length F, in fp64.

    torchmetrics' FID class sums squares, which cancels for features far from zero, and returns fp32.

    moments: (1 + F, 1 + F), the number and the mean in the first row, below them the scatter matrix.
    """

    full_state_update = False
    moments: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features
        zeros = torch.zeros(1 + num_features, 1 + num_features, dtype=torch.float64)
        self.add_state("moments", zeros, dist_reduce_fx=_merged)

    def update(self, features: Tensor) -> None:
        """Add features (B, F) of a batch."""
        if features.dim() != 2:
            raise UserError(f"features have shape {tuple(features.shape)}; FID takes (images, features)")
        if features.shape[1] != self.num_features:
            raise UserError(
                f"features of {self.num_features} and {features.shape[1]} dimensions cannot be merged; "
                "use one feature extractor"
            )
        if not len(features):
            return
        values = features.detach().to(self.device).double()
        batch = torch.zeros_like(self.moments)
        batch[0, 0] = len(values)
        batch[0, 1:] = values.mean(dim=0)
        centred = values - batch[0, 1:]
        batch[1:, 1:] = centred.T @ centred
        self.moments = _merged(torch.stack([self.moments, batch]))

    @property
    def count(self) -> int:
        """Images of this process."""
        return int(self.moments[0, 0])

    def compute(self) -> tuple[int, Tensor, Tensor]:
        """Number of images, mean (F,) and unbiased covariance (F, F), which needs two images."""
        count = self.count
        return count, self.moments[0, 1:], self.moments[1:, 1:] / max(count - 1, 1)


def _merged(moments: Tensor) -> Tensor:
    """Moments of several sets of images (sets, 1 + F, 1 + F) -> of all (Chan, Golub and LeVeque's update)."""
    counts, means = moments[:, 0, 0], moments[:, 0, 1:]
    merged = moments.sum(dim=0)
    merged[0, 1:] = counts @ means / merged[0, 0].clamp_min(1)
    shifts = (means - merged[0, 1:]) * counts.sqrt().unsqueeze(1)
    merged[1:, 1:] += shifts.T @ shifts
    return merged


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """|m1 − m2|² + tr(C1 + C2 − 2 (C1 C2)^½) of two sets of features; never below 0.

    The trace of the root is the sum of singular values of C1^½ C2^½, which is exact also for the singular
    covariances of fewer images than features, for which a matrix square root becomes complex.
    """
    count_one, mean_one, covariance_one = one.compute()
    count_other, mean_other, covariance_other = other.compute()
    if min(count_one, count_other) < 2:
        raise UserError(f"FID needs at least two images on each side, got {count_one} and {count_other}")
    if mean_one.shape != mean_other.shape:
        raise UserError(f"FID compares equal features, got {len(mean_one)} and {len(mean_other)} dimensions")
    root_one, root_other = _root(covariance_one), _root(covariance_other)
    shift = (mean_one - mean_other).square().sum()
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
        weights: the file pt_inception-2015-12-05-6726825d.pth of torch-fidelity's releases, never downloaded.

    Raises:
        UserError: a package is missing, or the file is missing or holds other weights.
    """

    size = 2048

    def __init__(self, weights: Path, device: str | torch.device = "cpu") -> None:
        optional_package("torch_fidelity")
        from torchmetrics.image.fid import NoTrainInceptionV3

        if not weights.is_file():
            raise UserError(f"the Inception weights {str(weights)!r} do not exist; give {INCEPTION_FILE}")
        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights), antialias=False)
        except Exception as error:  # damaged files fail in several ways in torch.load
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
