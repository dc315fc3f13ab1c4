"""What is measured on one trained model of an ablation: a flat mapping of figures, None where one has no
meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, SiglipModel

from ...common.yaml_files import read_yaml
from ...data_pipelines.records import Record
from ...data_pipelines.scenes.convert import DEFAULT_SKILLS, SceneOptions, scene_record
from ...eval.data.held_out import EVALUATION_SEED, HeldOut, named_objects
from ...eval.tokenizer import retention
from ...eval.tokenizer.measure import MetricOptions, measure_tokenizer
from ...eval.tokenizer.white_patches import white_patch_entropy
from ...mllm import DualTokenPipeline
from ...tokenizer import DualTokenizer, DualTokenizerImageProcessor
from ..nano.evaluate import answer_figures, drawing_figures
from .plan import Evaluation, get_key

Figures = dict[str, float | None]

PHOTO_SETS = ("clothing", "caltech")
QUESTION_SETS = ("easyvqa", "nlvr")
_RECONSTRUCTION_LOSSES = ("mse_weight", "l1_weight", "gradient_weight", "perceptual_weight")
_SEMANTIC_LOSSES = ("semantic_weight", "pooled_weight")
_PROBE_TRAIN_SHARE = 2 / 3
_BATCH = 32


def measure(kind: str, model: Path, evaluation: Evaluation, device: str, data: HeldOut) -> dict[str, Figures]:
    """Figures of a trained model folder, and "reference": the same of the tokenizer's teacher."""
    of_kind = _measure_tokenizer if kind == "tokenizer" else _measure_model
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = of_kind(model, evaluation, device, data)
    return {part: {name: _finite(value) for name, value in found[part].items()} for part in found}


# ---- tokenizers


def _measure_tokenizer(
    model: Path, evaluation: Evaluation, device: str, data: HeldOut
) -> dict[str, dict[str, float | None]]:
    recipe = read_yaml(model / "recipe.yaml")
    tokenizer = DualTokenizer.from_pretrained(model)
    torch.nn.Module.to(tokenizer, device)
    processor = DualTokenizerImageProcessor.from_pretrained(model)
    teacher = SiglipModel.from_pretrained(
        get_key(recipe, "tokenizer.teacher"), trust_remote_code=False
    ).eval()
    torch.nn.Module.to(teacher, device)
    sets = _image_sets(evaluation, data)
    draws = any(get_key(recipe, f"tokenizer.{name}") for name in _RECONSTRUCTION_LOSSES)
    knows = any(get_key(recipe, f"tokenizer.{name}") for name in _SEMANTIC_LOSSES)
    figures = _codes_and_images(tokenizer, processor, teacher, sets, draws)
    meaning, reference = _meaning(tokenizer, processor, teacher, model, evaluation, data, sets)
    if not knows:  # nothing ever trained the semantic branch
        own = ("probe_pixel",)
        meaning = {name: value if name in own else None for name, value in meaning.items()}
        figures["semantic_usage"] = figures["white_semantic_nats"] = None
    if not draws:
        figures["pixel_usage"] = figures["white_pixel_nats"] = meaning["probe_pixel"] = None
    return {"figures": figures | meaning, "reference": reference}


def _image_sets(evaluation: Evaluation, data: HeldOut) -> dict[str, list[Image.Image]]:
    # More drawings of shapes would tell no more of a tokenizer than the scenes do.
    more = {name: data.records(name) for name in evaluation.sets if name not in QUESTION_SETS}
    records = {"scenes": data.scenes(evaluation.scenes), **more}
    return {name: [part["image"] for r in of for part in r.image_parts()] for name, of in records.items()}


def _codes_and_images(
    tokenizer: DualTokenizer,
    processor: DualTokenizerImageProcessor,
    teacher: SiglipModel,
    sets: dict[str, list[Image.Image]],
    draws: bool,
) -> Figures:
    options = MetricOptions(feature_extractor=retention.TeacherFeatures(teacher, processor))
    groups = {"scenes": sets["scenes"], "photos": [i for name in PHOTO_SETS for i in sets.get(name, [])]}
    figures: Figures = {f"{what}_{name}": None for name in groups for what in ("psnr", "ssim")}
    for name, images in groups.items() if draws else ():
        if images:
            found = measure_tokenizer(tokenizer, images, ("psnr", "ssim"), processor=processor)["figures"]
            figures |= {f"psnr_{name}": found["psnr"], f"ssim_{name}": found["ssim"]}
    every = [image for images in sets.values() for image in images]
    wanted = ("codebook", "rfid") if draws else ("codebook",)
    found = measure_tokenizer(tokenizer, every, wanted, processor=processor, options=options)["figures"]
    figures["teacher_frechet"] = found.get("rfid")
    for branch in ("pixel", "semantic"):
        usage = found[f"{branch}_usage"]
        figures[f"{branch}_usage"] = 100 * sum(usage) / len(usage)
    noise = white_patch_entropy(tokenizer, processor, sets["scenes"])
    return figures | {f"white_{branch}_nats": entropy for branch, entropy in noise.items()}


def _meaning(
    tokenizer: DualTokenizer,
    processor: DualTokenizerImageProcessor,
    teacher: SiglipModel,
    folder: Path,
    evaluation: Evaluation,
    data: HeldOut,
    sets: dict[str, list[Image.Image]],
) -> tuple[Figures, Figures]:
    """What the codes know, and what the teacher knows."""
    layer, grid = tokenizer.config.semantic_layer, tokenizer.config.grid_size[0]

    def features(images: Sequence[Image.Image]) -> tuple[retention.Features, retention.Features]:
        student = retention.student_features(tokenizer, processor, images)
        return student, retention.teacher_features(teacher, layer, processor, images)

    scenes = data.scenes(evaluation.scenes)
    student, known = features(sets["scenes"])
    labels, train = retention.patch_labels(scenes, grid), round(len(scenes) * _PROBE_TRAIN_SHARE)
    assert student.pixel is not None
    figures: Figures = {
        **retention.likeness(student, known),
        "probe_semantic": retention.probe_accuracy(student.semantic, labels, train),
        "probe_pixel": retention.probe_accuracy(student.pixel, labels, train),
    }
    reference: Figures = {"probe_semantic": retention.probe_accuracy(known.semantic, labels, train)}
    embed = retention.text_embedder(teacher, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    for one in _labelled(evaluation, data):
        student, known = features(one.images)
        name = f"zero_shot/{one.name}"
        figures[name] = retention.zero_shot_accuracy(student.pooled, one.texts, embed)
        reference[name] = retention.zero_shot_accuracy(known.pooled, one.texts, embed)
    return figures, reference


def _labelled(evaluation: Evaluation, data: HeldOut) -> list[retention.Labelled]:
    """Scenes of one object, named by colour and shape, and the photos with their labels."""
    sets = [retention.Labelled("scenes", *named_objects(evaluation.scenes))]
    for name in PHOTO_SETS:
        if name in evaluation.sets:
            photos = data.records(name)
            images = [r.image_parts()[0]["image"] for r in photos]
            sets.append(retention.Labelled(name, images, [r.metadata["label"] for r in photos]))
    return sets


# ---- unified models


def _measure_model(model: Path, evaluation: Evaluation, device: str, data: HeldOut) -> dict[str, Figures]:
    pipeline = DualTokenPipeline.from_pretrained(model, device=device)
    asked = ["scenes", *(name for name in QUESTION_SETS if name in evaluation.sets)]
    answers = answer_figures(pipeline, data, evaluation.scenes, asked)
    figures: Figures = {f"answers/{name}": found["accuracy"] for name, found in answers.items()}
    kinds = answers["scenes"]["by_kind"]
    figures |= {f"scene_answers/{kind}": accuracy for kind, accuracy in kinds.items()}
    figures |= held_out_losses(pipeline, evaluation)
    if "pixel" in pipeline.model.config.branches:
        figures |= _drawings(pipeline, evaluation)
    return {"figures": figures, "reference": {}}


def _drawings(pipeline: DualTokenPipeline, evaluation: Evaluation) -> Figures:
    drawn = drawing_figures(pipeline, evaluation.drawings, EVALUATION_SEED, evaluation.skills)
    columns = (("drawings", "correct"), ("drawings_colour", "colour"), ("drawings_empty", "empty"))
    return {f"{name}/{skill}": found[key] for skill, found in drawn.items() for name, key in columns}


@torch.inference_mode()
def held_out_losses(pipeline: DualTokenPipeline, evaluation: Evaluation) -> Figures:
    """Mean negative log-likelihoods, in nats, on scenes never trained on: of the tokens of right answers, and
    of the codes of right drawings, over all depths of a position. No level is weighted."""
    asked = SceneOptions(seed=EVALUATION_SEED, task="vqa")
    skills = dict.fromkeys(evaluation.skills, 1.0) if evaluation.skills else DEFAULT_SKILLS
    drawn = SceneOptions(seed=EVALUATION_SEED, task="t2i", grid=evaluation.grid, skills=skills)
    text, visual = _Mean(), {name: _Mean() for name in ("pixel", "semantic")}
    for options in (asked, drawn):
        records = [scene_record(options, index) for index in range(evaluation.records)]
        for start in range(0, len(records), _BATCH):
            batch = _batch(pipeline, records[start : start + _BATCH])
            if options is asked:
                output = pipeline.model(**batch)
                text.add(output.sums.text, int(output.counts.text))
                continue
            found = pipeline.model.visual_log_likelihood(**batch)
            for name, mean in visual.items():
                likelihood = getattr(found, name)
                if name in pipeline.model.config.branches:
                    mean.add(-likelihood.sum(), len(likelihood))
    figures: Figures = {"text_nats": text.value, **{f"{n}_nats": mean.value for n, mean in visual.items()}}
    both = [mean.value for mean in visual.values()]
    figures["visual_nats"] = None if None in both else sum(value for value in both if value is not None)
    return figures


def _batch(pipeline: DualTokenPipeline, records: Sequence[Record]) -> dict[str, Tensor]:
    encoded = [pipeline.processor.encode_record(record.messages) for record in records]
    return {name: value.to(pipeline.device) for name, value in pipeline.processor.collate(encoded).items()}


class _Mean:
    """A mean of what is added as sums."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, total: Tensor, count: int) -> None:
        self.total += float(total)
        self.count += count

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


def _finite(value: float | None) -> float | None:
    """None for what is no number, which JSON cannot hold."""
    return float(value) if value is not None and math.isfinite(value) else None
