"""The dual tokenizer: a shallow layer learns reconstruction, a deep layer keeps the teacher's semantics.

The backbone starts as a copy of the teacher. Semantic features after quantization, and the pooled output
computed from them, are distilled from the frozen teacher's; the pixel branch reconstructs the image (arXiv
2503.14324, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, SiglipModel

from ....common.errors import shown
from ....common.loading.strict import load_exactly
from ....data_pipelines.records import Record, RecordError
from ....tokenizer import (
    DualTokenizer,
    DualTokenizerConfig,
    DualTokenizerImageProcessor,
    DualTokenizerOutput,
)
from ....tokenizer.perceptual import PerceptualLoss
from ...config.tokenizer import TokenizerObjectiveConfig
from ..base import Batch, LossTerm, Objective, Upcoming, cast, freeze_all_but, image_of, is_part, naming
from ..examples import Examples
from .codebook_health import health_alarms, health_metrics, health_summary
from .consistency import BACKGROUND_SHARE, consistency_loss, content_groups, keep_common
from .discriminator import Adversary
from .reconstruction import distillation_loss, gradient_loss

#: Losses of the semantic branch; their targets are the images that pass through it.
SEMANTIC_TERMS = ("semantic", "pooled", "semantic_commitment", "semantic_consistency")
#: Reconstruction losses; the adversarial loss is weighted relative to them.
FIDELITY = ("mse", "l1", "gradient", "perceptual")
#: All losses whose weight the recipe gives as NAME_weight; the adversarial one has separate settings.
TERMS = (
    *("semantic", "pooled", "mse", "perceptual", "l1", "gradient"),
    *("pixel_commitment", "semantic_commitment", "pixel_consistency", "semantic_consistency"),
)


@dataclass(frozen=True)
class TokenizerExamples(Examples):
    """One image of each record, as normalised pixels (3, S, S).

    Args:
        grid: positions in a row and column, for the consistency losses; None without them.
        semantic_fraction: share of a batch's images in the semantic branch.
    """

    image_processor: DualTokenizerImageProcessor
    grid: int | None
    semantic_fraction: float

    def prepare(self, record: Record, draw: int) -> torch.Tensor:
        images = record.image_parts()
        if not images:
            raise RecordError(f"Record {shown(record.id)} has no image")
        image = image_of(images[draw % len(images)], record)
        with naming(record):
            pixels: torch.Tensor = self.image_processor(image)["pixel_values"][0]
        return pixels

    def collate(self, examples: list[torch.Tensor]) -> Batch:
        batch: Batch = {"pixel_values": torch.stack(examples)}
        if self.grid is not None:
            # Equal pixels inside objects may belong to different shapes, so the semantic branch uses
            # backgrounds only.
            groups = content_groups(batch["pixel_values"], self.grid)
            deep = num_semantic(len(examples), self.semantic_fraction)
            backgrounds = keep_common(groups[:deep], BACKGROUND_SHARE)
            batch |= {"groups": groups, "backgrounds": backgrounds, "num_groups": int(groups.max()) + 1}
        return batch


def num_semantic(images: int, fraction: float) -> int:
    """The number of a batch's images that go through the semantic branch."""
    return max(1, round(images * fraction))


class TokenizerObjective(Objective):
    """Trains ``DualTokenizer``; exports it with image processor and text tokenizer as one folder."""

    def __init__(self, config: TokenizerObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        teacher = (
            SiglipModel.from_pretrained(config.teacher, trust_remote_code=False).eval().requires_grad_(False)
        )
        # Outside the module tree: the teacher is neither trained nor saved nor cast with the student.
        self._teacher = (teacher.vision_model,)
        model_config = DualTokenizerConfig(
            vision_config=teacher.config.vision_config.to_dict(),
            text_config=teacher.config.text_config.to_dict(),
            **vars(config.model),
        )
        self.model = DualTokenizer.from_backbone(teacher, model_config)
        self.model.stage_codebook_updates()
        # The text tower stays the teacher's: image features are distilled into its space.
        self.model.backbone.text_model.requires_grad_(False)
        self.model.backbone.logit_scale.requires_grad_(False)
        self.model.backbone.logit_bias.requires_grad_(False)
        # The networks of the reconstruction losses are outside the module tree for the same reason.
        perceptual = [PerceptualLoss(config.perceptual_weights)] if config.perceptual_weight else []
        self._perceptual = tuple(perceptual)
        self._adversary = Adversary(config.adversarial) if config.adversarial else None
        self._weights = {name: weight for name in TERMS if (weight := getattr(config, f"{name}_weight"))}
        if config.adversarial is not None and config.adversarial.weight:
            self._weights["adversarial"] = config.adversarial.weight
        self._step = 0
        self._judged: list[tuple[torch.Tensor, torch.Tensor]] = []
        if config.trained is not None:
            self._freeze_all_but(config.trained)
        self.image_processor = DualTokenizerImageProcessor.for_config(model_config)
        consistent = self._has("pixel_consistency", "semantic_consistency")
        grid = model_config.grid_size[0] if consistent else None
        self.examples = TokenizerExamples(self.image_processor, grid, config.semantic_fraction)
        self.text_tokenizer = AutoTokenizer.from_pretrained(config.teacher, trust_remote_code=False)
        self._alarms: dict[str, str] = {}
        self._summary: list[str] = []

    def _freeze_all_but(self, parts: list[str]) -> None:
        freeze_all_but(self.model, parts, "tokenizer.trained")
        for branch in ("pixel", "semantic"):
            # A codebook tracks its input features: it is updated if it or they are trained.
            followed = (f"{branch}_quantizer", f"{branch}_projection.")
            moves = any(is_part(name, parts) for name in followed)
            getattr(self.model, f"{branch}_quantizer").trainable = moves

    def target_counts(self, batch: Batch) -> dict[str, float]:
        images = len(batch["pixel_values"])
        deep = float(self._num_semantic(images))
        return {name: deep if name in SEMANTIC_TERMS else float(images) for name in self._weights}

    def _num_semantic(self, images: int) -> int:
        return num_semantic(images, self.config.semantic_fraction)

    def forward(self, **batch: Any) -> dict[str, LossTerm]:
        pixel_values = batch["pixel_values"]
        images = len(pixel_values)
        deep = self._num_semantic(images)
        reconstruct = self._adversary is not None or self._has(*FIDELITY)
        output = self.model(pixel_values, num_semantic=deep, reconstruct=reconstruct)
        totals = {
            "pixel_commitment": output.pixel_commitment_loss * images,
            "semantic_commitment": output.semantic_commitment_loss * deep,
        }
        if self._has("semantic", "pooled"):
            totals |= self._distillation(output, pixel_values[:deep])
        if self._has("pixel_consistency", "semantic_consistency"):
            totals |= self._consistency(output, batch)
        if output.reconstruction is not None:
            totals |= self._fidelity(output.reconstruction.float(), pixel_values)
        terms = {
            name: LossTerm(totals[name], weight)
            for name, weight in self._weights.items()
            if name != "adversarial"
        }
        if self._adversary is not None:
            terms["adversarial"] = self._adversarial(
                self._adversary, terms, output.reconstruction.float(), pixel_values
            )
        return terms

    def _has(self, *names: str) -> bool:
        """Whether any of these losses has a weight."""
        return any(name in self._weights for name in names)

    def _fidelity(self, reconstruction: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Reconstruction losses, summed over images."""
        error = reconstruction - images
        totals = {
            "mse": error.pow(2).flatten(1).mean(1).sum(),
            "l1": error.abs().flatten(1).mean(1).sum(),
            "gradient": gradient_loss(reconstruction, images).sum(),
        }
        if self._perceptual:
            totals["perceptual"] = self._perceptual[0](reconstruction, images).sum()
        return totals

    def _adversarial(
        self,
        adversary: Adversary,
        terms: dict[str, LossTerm],
        reconstruction: torch.Tensor,
        images: torch.Tensor,
    ) -> LossTerm:
        """The generator loss, weighted to a gradient in the decoder's last layer as large as that of the
        reconstruction losses; zero during warm-up."""
        if adversary.trains(self._step):
            self._judged.append((images, reconstruction.detach()))
        if not adversary.affects_tokenizer(self._step):
            return LossTerm(reconstruction.new_zeros(()), 0.0)
        judged = adversary.generator_loss(reconstruction)
        fidelity = torch.stack([terms[name].total * terms[name].weight for name in FIDELITY if name in terms])
        weight = adversary.adaptive_weight(
            fidelity.sum() / len(images), judged.mean(), self.model.pixel_decoder.last_layer
        )
        return LossTerm(judged.sum(), weight * adversary.config.weight)

    def after_step(self, step: int) -> None:
        self.model.apply_codebook_updates()
        if self._adversary is not None and self._judged:
            self._adversary.step(self._judged)
        self._judged = []

    def after_skipped_step(self) -> None:
        self.model.discard_codebook_updates()
        self._judged = []  # broken images teach the discriminator nothing

    def extra_state(self) -> dict[str, Any]:
        return {} if self._adversary is None else self._adversary.state_dict()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if self._adversary is not None:
            self._adversary.load_state_dict(state)

    def _distillation(
        self, output: DualTokenizerOutput, pixel_values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses between the semantic branch and the teacher, summed over its images."""
        with torch.no_grad():
            encoder = self._teacher[0].to(pixel_values.device)
            teacher = encoder(pixel_values=pixel_values, output_hidden_states=True)
        target = teacher.hidden_states[self.model.config.semantic_layer].float()
        assert output.semantic_features is not None
        assert output.pooled is not None
        return {
            "semantic": distillation_loss(output.semantic_features.float(), target).sum(),
            "pooled": distillation_loss(output.pooled.float(), teacher.pooler_output.float()).sum(),
        }

    def _consistency(self, output: DualTokenizerOutput, batch: Batch) -> dict[str, torch.Tensor]:
        """Consistency losses at the inputs of both quantizers, summed over images."""
        assert output.pixel_latents is not None
        assert output.semantic_latents is not None
        groups, backgrounds, number = (batch[key] for key in ("groups", "backgrounds", "num_groups"))
        pixel = consistency_loss(output.pixel_latents.flatten(1, 2), groups, number)
        semantic = consistency_loss(output.semantic_latents.flatten(1, 2), backgrounds, number)
        return {"pixel_consistency": pixel * len(groups), "semantic_consistency": semantic * len(backgrounds)}

    def before_step(self, step: int, upcoming: Upcoming, device: torch.device) -> None:
        """Disable quantization for ``unquantized_steps``, then initialise the codebooks by k-means.

        Codes that cover the data avoid a cold start, at which an EMA codebook can diverge.
        """
        start = self.config.unquantized_steps
        self._step = step
        for perceptual in self._perceptual:
            perceptual.to(device)
        if self._adversary is not None:
            self._adversary.to(device)
        self.model.set_quantization(start is None or step >= start)
        self.model.count_codebook_updates()
        if step != start:
            return
        images: list[torch.Tensor] = []
        needed = self.config.initialisation_vectors // self.model.config.num_positions + 1
        for batch in upcoming():
            images.append(batch["pixel_values"])
            needed -= len(images[-1])
            if needed <= 0:
                break
        self.model.initialise_codebooks(torch.cat(images).to(device))

    def extra_metrics(self) -> dict[str, float]:
        judge = {} if self._adversary is None else self._adversary.metrics
        metrics = {name: float(value) for name, value in judge.items()}
        self._alarms, self._summary = {}, []
        for name in ("semantic",) if self.model.config.shared_quantizer else ("pixel", "semantic"):
            quantizer = getattr(self.model, f"{name}_quantizer")
            if not (quantizer.enabled and quantizer.trainable):
                continue
            health = quantizer.read_health()
            metrics |= health_metrics(name, health)
            self._alarms |= health_alarms(name, health, quantizer.config)
            self._summary.append(health_summary(name, health))
        return metrics

    def summary(self) -> str:
        return ", ".join(self._summary)

    def alarms(self) -> dict[str, str]:
        return self._alarms

    def export(self, folder: Path, dtype: torch.dtype) -> None:
        cast(self.model, dtype)
        self.model.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        self.text_tokenizer.save_pretrained(folder)

    def initialise_from(self, folder: str) -> None:
        weights = DualTokenizer.from_pretrained(folder).state_dict()
        load_exactly(self.model, weights, f"tokenizer.model is not that of init_from {folder}")
