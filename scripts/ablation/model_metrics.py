"""The metrics of a trained unified model of an ablation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ...data_pipelines.scenes.convert import DEFAULT_SKILLS, SceneOptions, scene_record
from ...eval import Task, get_task
from ...eval.data.held_out import EVALUATION_SEED, HeldOut
from ...eval.tasks.held_out_questions import Scenes
from ...mllm import DualTokenPipeline
from ...mllm.settings import BRANCHES
from ..nano.tasks import by_kind, by_skill, run_task, scenes_to_generate
from .metrics import Metrics
from .plan import Evaluation
from .tokenizer_metrics import QUESTION_SETS

_BATCH = 32


def model_metrics(folder: Path, evaluation: Evaluation, device: str, data: HeldOut) -> Metrics:
    """Metrics of answers, generated images and losses of a model's folder, on held-out data."""
    pipeline = DualTokenPipeline.from_pretrained(folder, device=device)
    asked = [name for name in QUESTION_SETS if name in evaluation.sets]
    tasks: list[Task] = [Scenes(evaluation.scenes), *map(get_task, asked)]
    if "pixel" in pipeline.model.config.branches:
        tasks.append(scenes_to_generate(evaluation.drawings, evaluation.skills))
    with TemporaryDirectory() as output:
        runs = {task.name: run_task(pipeline, task, Path(output), data) for task in tasks}
    metrics: Metrics = {f"answers/{name}": runs[name].metrics["accuracy"] for name in ("scenes", *asked)}
    metrics |= {f"scene_answers/{kind}": value for kind, value in by_kind(runs["scenes"]).items()}
    metrics |= held_out_losses(pipeline, evaluation)
    columns = {"drawings": "correct", "drawings_colour": "colour", "drawings_empty": "empty"}
    for skill, found in by_skill(runs["scenes-t2i"]).items() if "scenes-t2i" in runs else ():
        metrics |= {f"{name}/{skill}": found[column] for name, column in columns.items()}
    return metrics


@torch.inference_mode()
def held_out_losses(pipeline: DualTokenPipeline, evaluation: Evaluation) -> Metrics:
    """Mean negative log-likelihoods in nats on held-out scenes: of a token of correct answers, and of all
    codes of a position of true images, without weights."""
    asked = SceneOptions(seed=EVALUATION_SEED, task="vqa")
    skills = dict.fromkeys(evaluation.skills, 1.0) if evaluation.skills else DEFAULT_SKILLS
    generated = SceneOptions(seed=EVALUATION_SEED, task="t2i", grid=evaluation.grid, skills=skills)
    sums, counts = (dict.fromkeys(("text", *BRANCHES), zero) for zero in (0.0, 0))
    for batch in _batches(pipeline, asked, evaluation.records):
        output = pipeline.model(**batch)
        sums["text"] += float(output.sums.text)
        counts["text"] += int(output.counts.text)
    for batch in _batches(pipeline, generated, evaluation.records):
        found = pipeline.model.visual_log_likelihood(**batch)
        for branch in pipeline.model.config.branches:
            likelihood = getattr(found, branch)
            sums[branch] -= float(likelihood.sum())
            counts[branch] += len(likelihood)
    means = {name: sums[name] / counts[name] if counts[name] else None for name in sums}
    both = [mean for branch in BRANCHES if (mean := means[branch]) is not None]
    visual = sum(both) if len(both) == len(BRANCHES) else None
    return {**{f"{name}_nats": mean for name, mean in means.items()}, "visual_nats": visual}


def _batches(pipeline: DualTokenPipeline, options: SceneOptions, count: int) -> Iterator[dict[str, Tensor]]:
    """The first `count` scenes as batches of the model's inputs."""
    processor = pipeline.processor
    for start in range(0, count, _BATCH):
        records = [scene_record(options, index) for index in range(start, min(start + _BATCH, count))]
        batch = processor.collate([processor.encode_record(record.messages) for record in records])
        yield {name: value.to(pipeline.device) for name, value in batch.items()}
