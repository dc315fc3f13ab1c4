"""The adversarial part of the tokenizer's recipe."""

from __future__ import annotations

from dataclasses import dataclass

from ...common.limits import limited


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial part of the tokenizer's training.

    Args:
        weight: of the generator's loss, times the adaptive weight (released: 0.75).
        start_step: first step at which the discriminator trains.
        warmup_steps: it trains alone for so many steps before the tokenizer feels it; a new discriminator
            can wreck a good reconstruction.
        layers, channels: depth and width of the discriminator (released: 3 and 64).
        lr, betas: of its Adam.
        adaptive_min, adaptive_max: bounds of the adaptive weight (released: 0.3 and 10).
        leak: slope of the hinge beyond its margin; 0 is the plain hinge.
    """

    weight: float = limited(0.75, least=0.0, most=1e6)
    start_step: int = limited(0, least=0, most=10**9)
    warmup_steps: int = limited(0, least=0, most=10**9)
    layers: int = limited(3, least=1, most=10)
    channels: int = limited(64, least=1, most=4096)
    lr: float = limited(7.2e-5, least=0.0, most=10.0)
    betas: tuple[float, float] = limited((0.5, 0.9), least=0.0, below=1.0)
    adaptive_min: float = limited(0.3, least=0.0, most=1e6)
    adaptive_max: float = limited(10.0, least=0.0, most=1e6)
    leak: float = limited(0.0, least=0.0, most=1.0)
