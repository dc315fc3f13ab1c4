"""What a tokenizer's codes keep of its teacher: likeness of features, zero-shot accuracy, linear probes.

All of it needs only the teacher, held-out images and procedural scenes: no downloaded weights. Zero-shot
accuracy and probes are measured on the teacher as well, which is the upper bound of what can be kept.
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
    """Of N images with P positions: semantic and pixel features (N, P, ·), pooled (N, E), all fp32.

    The teacher has no pixel features.
    """

    semantic: Tensor
    pooled: Tensor
    pixel: Tensor | None = None


class TeacherFeatures:
    """The teacher's pooled output as the features of a Fréchet distance: uint8 (B, 3, S, S) -> (B, E).

    Not Inception's: such a distance compares tokenizers of one teacher, not published FIDs.
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
    """What the tokenizer makes of its codes: the semantic branch's features and pooled output, and the sums
    of the pixel codes' vectors."""
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
    """The same of the teacher, its states after `layer` layers in place of the semantic features."""
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
    """Percent of images (N, E) whose own text is the nearest among all the distinct texts."""
    classes = sorted(set(texts))
    prompts = functional.normalize(embed(classes).float().cpu(), dim=-1)
    nearest = (functional.normalize(pooled, dim=-1) @ prompts.T).argmax(dim=1)
    wanted = torch.tensor([classes.index(text) for text in texts])
    return 100 * float((nearest == wanted).double().mean())


def text_embedder(teacher: SiglipModel, text_tokenizer: Any) -> Callable[[list[str]], Tensor]:
    """The teacher's text tower, which tokenizers keep: texts -> (N, E)."""
    text: Any = teacher.config.text_config
    text_ids = TextIds(text_tokenizer, int(text.max_position_embeddings))

    @torch.inference_mode()
    def embed(texts: list[str]) -> Tensor:
        ids = text_ids(texts).to(teacher.device)
        output: Tensor = teacher.text_model(input_ids=ids).pooler_output
        return output

    return embed


def patch_labels(records: Sequence[Record], grid: int) -> np.ndarray:
    """Class (colour and shape) of what lies under every patch of scenes: (N, grid²), 0 for background."""
    return np.stack(
        [patch_classes(Scene.from_dict(record.metadata["scene"]), grid).reshape(-1) for record in records]
    )


def probe_accuracy(features: Tensor, labels: np.ndarray, train: int, ridge: float = 1e-3) -> float:
    """Percent of the objects' patches that a linear probe names by colour and shape.

    Ridge regression on one-hot classes, so that nothing is tuned or random. Fitted on the
    first `train` images and judged on the others; patches of background take no part.

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
