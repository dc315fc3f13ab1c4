"""LPIPS, the learned perceptual distance (arXiv 1801.03924), by the `lpips` package."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

from torch import Tensor, nn

from ..common.errors import UserError, first_line
from ..common.loading.strict import load_exactly, load_tensors


class PerceptualLoss(nn.Module):
    """Distance of image pairs in the features of a frozen VGG-16.

    Args:
        weights: a file with the state dict of `lpips.LPIPS(net="vgg")` (.pt or .safetensors), for machines
            without network; None: VGG-16 from torchvision and the package's linear layers.
        setting: the setting that names this file, for messages.

    Raises:
        UserError: the weights cannot be read, do not fit, or cannot be fetched.
    """

    def __init__(self, weights: str | None = None, setting: str = "tokenizer.perceptual_weights") -> None:
        import lpips

        super().__init__()
        self._setting = setting
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it prints, and uses deprecated arguments of torchvision
            try:
                self.distance = lpips.LPIPS(net="vgg", pnet_rand=weights is not None, pretrained=True)
            except OSError as error:
                raise UserError(
                    f"the weights of VGG-16 cannot be fetched ({first_line(error)}); save the state dict of "
                    f'lpips.LPIPS(net="vgg") elsewhere and name the file in {setting}'
                ) from error
        if weights is not None:
            self._load(Path(weights))
        self.distance.eval().requires_grad_(False)

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Two batches (B, 3, S, S) in [-1, 1] -> (B,)."""
        return self.distance(reconstruction, images).flatten()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stays in eval mode."""
        return super().train(False)

    def _load(self, path: Path) -> None:
        try:
            load_exactly(self.distance, load_tensors(path), "its weights do not fit")
        except UserError as error:
            raise UserError(
                f"{self._setting} {str(path)!r} cannot be used: {first_line(error)}; give the "
                'state dict of lpips.LPIPS(net="vgg")'
            ) from error
