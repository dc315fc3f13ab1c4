"""The metrics of a trained tokenizer of an ablation, and of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoTokenizer, SiglipModel

from ...common.yaml_files import read_yaml
from ...data_pipelines.records import Record
from ...eval.data.held_out import HeldOut, images_of, named_objects
from ...eval.tokenizer import retention
from ...eval.tokenizer.measure import MetricOptions, measure_tokenizer
from ...eval.tokenizer.white_patches import white_patch_entropy
from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor
from .metrics import Metrics
from .plan import Evaluation
from .recipes import get_key

PHOTO_SETS = ("clothing", "caltech")
#: Not used for tokenizers: their shapes are like those of the scenes.
QUESTION_SETS = ("easyvqa", "nlvr")
_RECONSTRUCTION_LOSSES = ("mse_weight", "l1_weight", "gradient_weight", "perceptual_weight")
_SEMANTIC_LOSSES = ("semantic_weight", "pooled_weight")
_PROBE_TRAIN_SHARE = 2 / 3


def tokenizer_metrics(
    folder: Path, evaluation: Evaluation, device: str, data: HeldOut
) -> tuple[Metrics, Metrics]:
    """The metrics of a tokenizer's folder, None where undefined, and those of its teacher."""
    recipe = read_yaml(folder / "recipe.yaml")
    tokenizer = DualTokenizer.from_pretrained(folder)
    teacher = SiglipModel.from_pretrained(get_key(recipe, "tokenizer.teacher"), trust_remote_code=False)
    for model in (tokenizer, teacher.eval()):
        torch.nn.Module.to(model, device)  # PreTrainedModel's own `to` has no usable types
    processor = DualTokenizerImageProcessor.from_pretrained(folder)
    measured = _Measured(folder, tokenizer, processor, teacher, evaluation, data)

    def trained_by(losses: Sequence[str]) -> bool:
        return any(get_key(recipe, f"tokenizer.{name}") for name in losses)

    reconstructs = trained_by(_RECONSTRUCTION_LOSSES)
    metrics = measured.codes_and_images(reconstructs)
    semantics, reference = measured.semantics()
    if not trained_by(_SEMANTIC_LOSSES):
        semantics = dict.fromkeys(semantics) | {"probe_pixel": semantics["probe_pixel"]}
        metrics["semantic_usage"] = metrics["white_semantic_nats"] = None
    if not reconstructs:
        metrics["pixel_usage"] = metrics["white_pixel_nats"] = semantics["probe_pixel"] = None
    return metrics | semantics, reference


@dataclass(frozen=True)
class _Measured:
    """A tokenizer, its teacher and the data to measure it."""

    folder: Path
    tokenizer: DualTokenizer
    processor: DualTokenizerImageProcessor
    teacher: SiglipModel
    evaluation: Evaluation
    data: HeldOut

    @cached_property
    def scenes(self) -> list[Record]:
        return self.data.scenes(self.evaluation.scenes)

    @cached_property
    def image_sets(self) -> dict[str, list[Image.Image]]:
        others = [name for name in self.evaluation.sets if name not in QUESTION_SETS]
        records = {"scenes": self.scenes, **{name: self.data.records(name) for name in others}}
        return {name: images_of(of_set) for name, of_set in records.items()}

    def codes_and_images(self, reconstructs: bool) -> Metrics:
        """Quality of reconstructions, if trained; usage of codes, and their entropy on white patches."""
        sets = self.image_sets
        groups = {"scenes": sets["scenes"], "photos": [i for name in PHOTO_SETS for i in sets.get(name, [])]}
        metrics: Metrics = {f"{what}_{name}": None for name in groups for what in ("psnr", "ssim")}
        for name, images in groups.items() if reconstructs else ():
            if images:
                found = self._measure(images, "psnr", "ssim")
                metrics |= {f"{what}_{name}": found[what] for what in ("psnr", "ssim")}
        every = [image for images in sets.values() for image in images]
        found = self._measure(every, "codebook", *(["rfid"] if reconstructs else []))
        metrics["teacher_frechet"] = found.get("rfid")
        for branch, entropy in white_patch_entropy(self.tokenizer, self.processor, sets["scenes"]).items():
            usage = found[f"{branch}_usage"]
            metrics[f"{branch}_usage"] = 100 * sum(usage) / len(usage)
            metrics[f"white_{branch}_nats"] = entropy
        return metrics

    def _measure(self, images: list[Image.Image], *names: str) -> dict[str, Any]:
        options = MetricOptions(feature_extractor=retention.TeacherFeatures(self.teacher, self.processor))
        result = measure_tokenizer(self.tokenizer, images, names, processor=self.processor, options=options)
        values: dict[str, Any] = result["figures"]
        return values

    def semantics(self) -> tuple[Metrics, Metrics]:
        """Metrics of the semantics of the codes, and of the teacher."""
        student, known = self._features(self.image_sets["scenes"])
        labels = retention.patch_labels(self.scenes, self.tokenizer.config.grid_size[0])
        train = round(len(self.scenes) * _PROBE_TRAIN_SHARE)
        assert student.pixel is not None
        metrics: Metrics = {
            **retention.likeness(student, known),
            "probe_semantic": retention.probe_accuracy(student.semantic, labels, train),
            "probe_pixel": retention.probe_accuracy(student.pixel, labels, train),
        }
        reference: Metrics = {"probe_semantic": retention.probe_accuracy(known.semantic, labels, train)}
        texts = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        embed = retention.text_embedder(self.teacher, texts)
        for name, (images, labels_of_images) in self._labelled().items():
            for found, features in zip((metrics, reference), self._features(images), strict=True):
                accuracy = retention.zero_shot_accuracy(features.pooled, labels_of_images, embed)
                found[f"zero_shot/{name}"] = accuracy
        return metrics, reference

    def _features(self, images: Sequence[Image.Image]) -> tuple[retention.Features, retention.Features]:
        student = retention.student_features(self.tokenizer, self.processor, images)
        layer = self.tokenizer.config.semantic_layer
        return student, retention.teacher_features(self.teacher, layer, self.processor, images)

    def _labelled(self) -> dict[str, tuple[list[Image.Image], list[str]]]:
        """Images and their texts: one-object scenes by colour and shape, photos by label."""
        sets = {"scenes": named_objects(self.evaluation.scenes)}
        for name in PHOTO_SETS:
            if name in self.evaluation.sets:
                photos = self.data.records(name)
                images = [record.image_parts()[0]["image"] for record in photos]
                sets[name] = images, [record.metadata["label"] for record in photos]
        return sets
