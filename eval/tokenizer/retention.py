"""What a tokenizer's codes keep of its teacher: similarity of features, zero-shot accuracy, linear probes.

Needs only the teacher, held-out images and procedural scenes. Zero-shot accuracy and probes are measured on
the teacher as well, as an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import SiglipModel

from ...data_pipelines.records import Record
from ...data_pipelines.scenes.scene import Scene, patch_classes
from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor
from .batch import pixel_batches
from .text_tower import TextIds

_BACKGROUND = 0


@dataclass(frozen=True)
class Features:
    """Of N images with P positions: semantic and pixel features (N, P, ·), pooled (N, E), all fp32. The
    teacher has no pixel features."""

    semantic: Tensor
    pooled: Tensor
    pixel: Tensor | None = None


class TeacherFeatures:
    """The teacher's pooled output as the features of a Fréchet distance: uint8 (B, 3, S, S) -> (B, E).

    Comparable between tokenizers of one teacher, not with published FIDs.
    """

    def __init__(self, teacher: SiglipModel, processor: DualTokenizerImageProcessor) -> None:
        self._teacher, self._processor = teacher, processor

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values).view(1, 3, 1, 1)
            for values in (self._processor.image_mean, self._processor.image_std)
        )
        pixels = ((images.float() / 255 - mean) / std).to(self._teacher.device)
        pooled: Tensor = self._teacher.vision_model(pixel_values=pixels).pooler_output
        return pooled.float().cpu()


@torch.inference_mode()
def student_features(
    tokenizer: DualTokenizer, processor: DualTokenizerImageProcessor, images: Sequence[Image.Image]
) -> Features:
    """From codes: the semantic features and pooled output, and the sums of the pixel codes' vectors."""
    parts = []
    for pixels in pixel_batches(processor, images):
        output = tokenizer(pixels.to(tokenizer.device), reconstruct=False)
        pixel = tokenizer.pixel_quantizer.embed(output.codes.pixel).flatten(1, 2)
        parts.append((output.semantic_features, output.pooled, pixel))
    semantic, pooled, pixel = (torch.cat([p.float().cpu() for p in of]) for of in zip(*parts, strict=True))
    return Features(semantic, pooled, pixel)


@torch.inference_mode()
def teacher_features(
    teacher: SiglipModel, layer: int, processor: DualTokenizerImageProcessor, images: Sequence[Image.Image]
) -> Features:
    """The teacher's states after `layer` layers as semantic features, and its pooled output."""
    parts = []
    for pixels in pixel_batches(processor, images):
        output = teacher.vision_model(pixel_values=pixels.to(teacher.device), output_hidden_states=True)
        parts.append((output.hidden_states[layer], output.pooler_output))
    semantic, pooled = (torch.cat([p.float().cpu() for p in of]) for of in zip(*parts, strict=True))
    return Features(semantic, pooled)


def likeness(student: Features, teacher: Features) -> dict[str, float]:
    """Mean cosine of the student's and the teacher's features of the same images."""
    return {
        "feature_cosine": _cosine(student.semantic, teacher.semantic),
        "pooled_cosine": _cosine(student.pooled, teacher.pooled),
    }


def zero_shot_accuracy(pooled: Tensor, texts: Sequence[str], embed: Callable[[list[str]], Tensor]) -> float:
    """Percent of images (N, E) whose text is the nearest of all distinct texts."""
    classes = sorted(set(texts))
    prompts = functional.normalize(embed(classes).float().cpu(), dim=-1)
    nearest = (functional.normalize(pooled, dim=-1) @ prompts.T).argmax(dim=1)
    wanted = torch.tensor([classes.index(text) for text in texts])
    return 100 * float((nearest == wanted).double().mean())


def text_embedder(teacher: SiglipModel, text_tokenizer: Any) -> Callable[[list[str]], Tensor]:
    """The teacher's text tower, which tokenizers share: texts -> (N, E)."""
    text: Any = teacher.config.text_config
    text_ids = TextIds(text_tokenizer, int(text.max_position_embeddings))

    @torch.inference_mode()
    def embed(texts: list[str]) -> Tensor:
        ids = text_ids(texts).to(teacher.device)
        output: Tensor = teacher.text_model(input_ids=ids).pooler_output
        return output

    return embed


def patch_labels(records: Sequence[Record], grid: int) -> np.ndarray:
    """Class (colour and shape) of every patch of scenes: (N, grid²), 0 for background."""
    scenes = (Scene.from_dict(record.metadata["scene"]) for record in records)
    return np.stack([patch_classes(scene, grid).reshape(-1) for scene in scenes])


def probe_accuracy(features: Tensor, labels: np.ndarray, train: int, ridge: float = 1e-3) -> float:
    """Percent of the objects' patches whose colour and shape a linear probe finds.

    Ridge regression on one-hot classes, which is deterministic, fitted on the first `train` images and
    evaluated on the others; background is ignored.

    Args:
        features: (N, P, C). labels: (N, P), 0 for background.
        ridge: relative to the mean variance of a feature.
    """
    targets = torch.from_numpy(labels)
    chosen = targets != _BACKGROUND
    fit, test = chosen.clone(), chosen.clone()
    fit[train:], test[:train] = False, False
    if not fit.any() or not test.any():
        return float("nan")
    inputs = features[fit].double()
    mean = inputs.mean(dim=0)
    centred = inputs - mean
    scatter = centred.T @ centred / len(centred)
    scatter.diagonal().add_(ridge * scatter.diagonal().mean().clamp(min=1e-12))
    one_hot = functional.one_hot(targets[fit], int(targets.max()) + 1).double()
    weights = torch.linalg.solve(scatter, centred.T @ (one_hot - one_hot.mean(dim=0)) / len(centred))
    scores = (features[test].double() - mean) @ weights + one_hot.mean(dim=0)
    return 100 * float((scores.argmax(dim=1) == targets[test]).double().mean())


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(functional.cosine_similarity(one.double(), other.double(), dim=-1).mean())
