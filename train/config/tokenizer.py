"""Section `tokenizer`: the dual tokenizer's losses, and what of it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...common.limits import limited
from ...tokenizer.settings import TokenizerSettings
from .contrastive import MOST_WEIGHT
from .paths import locate


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

    weight: float = limited(0.75, least=0.0, most=MOST_WEIGHT)
    start_step: int = limited(0, least=0, most=10**9)
    warmup_steps: int = limited(0, least=0, most=10**9)
    layers: int = limited(3, least=1, most=10)
    channels: int = limited(64, least=1, most=4096)
    lr: float = limited(7.2e-5, least=0.0, most=10.0)
    betas: tuple[float, float] = limited((0.5, 0.9), least=0.0, below=1.0)
    adaptive_min: float = limited(0.3, least=0.0, most=MOST_WEIGHT)
    adaptive_max: float = limited(10.0, least=0.0, most=MOST_WEIGHT)
    leak: float = limited(0.0, least=0.0, most=1.0)


@dataclass(frozen=True)
class TokenizerObjectiveConfig:
    """The dual tokenizer against its frozen teacher: semantic distillation, reconstruction, commitment.

    Args:
        teacher: folder or hub id of the SigLIP model that is both the initial backbone and the frozen
            teacher.
        model: the tokenizer around the teacher.
        semantic_weight: weight of MSE - cos at the semantic layer (paper: L_sem; released weight 5).
        pooled_weight: the same at the pooled output (released weight 1).
        mse_weight, l1_weight, gradient_weight: pixel losses; ``gradient`` compares finite differences,
            which keeps edges.
        pixel_commitment_weight, semantic_commitment_weight: commitment of each quantizer.
        pixel_consistency_weight, semantic_consistency_weight: weight of pulling together the inputs of each
            quantizer for patches with equal pixels (semantic: for repeated backgrounds only).
        perceptual_weight: weight of LPIPS (released: 1).
        perceptual_weights: file with the weights of LPIPS and its VGG-16; None fetches them.
        adversarial: PatchGAN discriminator and its settings; None trains without.
        trained: parts of the model that are trained, as beginnings of parameter names or shell patterns
            (backbone.vision_model.encoder.layers.[6-9].*); None trains all.
            A codebook moves where its own name (pixel_quantizer) or that of the projection before it
            (pixel_projection) is among them.
        semantic_fraction: share of every batch that goes through the semantic branch. Below 1 it saves time
            where the backbone starts from its teacher, so that the deep branch has little to learn and the
            shallow one a lot.
        unquantized_steps: steps before quantization begins; the codebooks are then initialised by k-means.
            None quantizes from the first step with the codebooks as they are (a run with init_from).
        initialisation_vectors: at least this many feature vectors are collected for the k-means.
    """

    teacher: str
    model: TokenizerSettings = field(default_factory=TokenizerSettings)
    semantic_weight: float = limited(5.0, least=0.0, most=MOST_WEIGHT)
    pooled_weight: float = limited(1.0, least=0.0, most=MOST_WEIGHT)
    mse_weight: float = limited(5.0, least=0.0, most=MOST_WEIGHT)
    l1_weight: float = limited(0.0, least=0.0, most=MOST_WEIGHT)
    gradient_weight: float = limited(0.0, least=0.0, most=MOST_WEIGHT)
    pixel_commitment_weight: float = limited(5.0, least=0.0, most=MOST_WEIGHT)
    semantic_commitment_weight: float = limited(5.0, least=0.0, most=MOST_WEIGHT)
    pixel_consistency_weight: float = limited(0.0, least=0.0, most=MOST_WEIGHT)
    semantic_consistency_weight: float = limited(0.0, least=0.0, most=MOST_WEIGHT)
    perceptual_weight: float = limited(0.0, least=0.0, most=MOST_WEIGHT)
    perceptual_weights: str | None = None
    adversarial: AdversarialConfig | None = None
    trained: list[str] | None = None
    semantic_fraction: float = limited(1.0, above=0.0, most=1.0)
    unquantized_steps: int | None = limited(0, least=0, most=10**9)
    initialisation_vectors: int = limited(16384, least=1, most=10**9)

    def __post_init__(self) -> None:
        locate(self, "teacher", "perceptual_weights")
