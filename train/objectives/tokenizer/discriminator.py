"""The PatchGAN discriminator and its training with the tokenizer (arXiv 1611.07004; VQGAN, 2012.09841).

It is a plain module with a separate optimizer, which DeepSpeed does not wrap: its gradients are averaged over
the processes here, and it is frozen in the tokenizer's step. A second engine would be silently wrong at ZeRO
stages 2 and 3.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ....tokenizer.quantizer.codebook import is_distributed
from ...config.tokenizer import AdversarialConfig


class PatchDiscriminator(nn.Sequential):
    """Images (B, 3, S, S) -> one logit for each overlapping patch, (B, 1, h, w).

    Batch norms always use batch statistics: running ones would differ between processes.
    """

    def __init__(self, layers: int = 3, channels: int = 64) -> None:
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, layers + 1):
            before, width = width, channels * min(2**index, 8)
            stride = 2 if index < layers else 1
            norm = nn.BatchNorm2d(width, track_running_stats=False)
            parts += [nn.Conv2d(before, width, 4, stride, 1, bias=False), norm, nn.LeakyReLU(0.2)]
        super().__init__(*parts, nn.Conv2d(width, 1, 4, 1, 1))
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)


class Adversary:
    """A discriminator with its training, and the loss that it gives the tokenizer."""

    def __init__(self, config: AdversarialConfig) -> None:
        self.config = config
        self.model = PatchDiscriminator(config.layers, config.channels)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr, betas=config.betas)
        self.metrics: dict[str, Tensor] = {}

    def to(self, device: torch.device) -> None:
        """Move weights and optimizer state to `device`."""
        if next(self.model.parameters()).device == device:
            return
        self.model.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())  # moves its state too

    def trains(self, step: int) -> bool:
        """Whether the discriminator trains at this optimizer step."""
        return step >= self.config.start_step

    def affects_tokenizer(self, step: int) -> bool:
        """Whether the tokenizer is trained against it at this step."""
        return step >= self.config.start_step + self.config.warmup_steps

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """-mean D(x̂) of each image, (B,); no gradient reaches the discriminator's weights."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        logits = self.model(reconstruction).float()
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        return -logits.flatten(1).mean(1)

    def adaptive_weight(self, reconstruction_loss: Tensor, generator_loss: Tensor, last: Tensor) -> Tensor:
        """‖∇ reconstruction‖ / (‖∇ generator‖ + 1e-4) at the decoder's last weight, clamped and averaged."""
        (ours,) = torch.autograd.grad(reconstruction_loss, last, retain_graph=True)
        (theirs,) = torch.autograd.grad(generator_loss, last, retain_graph=True)
        ratio = ours.float().norm() / (theirs.float().norm() + 1e-4)
        weight = ratio.clamp(self.config.adaptive_min, self.config.adaptive_max).detach()
        if is_distributed():
            dist.all_reduce(weight)
            weight = weight / dist.get_world_size()
        self.metrics["adaptive_weight"] = weight
        return weight

    def step(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """One optimizer step on the (images, reconstructions) of the tokenizer's accumulated batches."""
        self.optimizer.zero_grad(set_to_none=True)
        for images, reconstruction in batches:
            real, fake = self.model(images).float(), self.model(reconstruction).float()
            loss = self._hinge(1.0 - real) + self._hinge(1.0 + fake)
            (0.5 * loss / len(batches)).backward()
            self.metrics |= {
                "discriminator_loss": loss.detach() / 2,
                "logits_real": real.detach().mean(),
                "logits_fake": fake.detach().mean(),
            }
        self._average_gradients()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer state; equal on all processes."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _hinge(self, margin: Tensor) -> Tensor:
        return F.leaky_relu(margin, self.config.leak).mean()

    def _average_gradients(self) -> None:
        if not is_distributed():
            return
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        flat = parameters_to_vector(gradients)
        dist.all_reduce(flat)
        vector_to_parameters(flat / dist.get_world_size(), gradients)
