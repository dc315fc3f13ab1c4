"""The registered tasks that evaluate a small model, and their results by kind and by skill."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...data_pipelines.scenes.language import EXACT_SKILLS
from ...eval import Item, Task, get_task
from ...eval.data.held_out import HeldOut, evenly_spread
from ...eval.harness.predictor import PipelinePredictor
from ...eval.harness.results import SAMPLES
from ...eval.harness.runner import predict, score
from ...eval.harness.task_data import Settings, load_data
from ...eval.judges.protocols import Judges
from ...eval.tasks.held_out_questions import RewordedScenes, Scenes
from ...eval.tasks.scenes_t2i import ScenesT2i
from ...mllm import DualTokenPipeline


class TaskRun(NamedTuple):
    """A task's run folder and result, and every item with its line of `samples.jsonl`."""

    folder: Path
    result: dict[str, Any]
    samples: list[tuple[Item, dict[str, Any]]]

    @property
    def metrics(self) -> dict[str, float | None]:
        return dict(self.result["metrics"])


def run_task(
    pipeline: DualTokenPipeline,
    task: Task,
    output: Path,
    data: HeldOut,
    judges: Judges | None = None,
    most: int | None = None,
) -> TaskRun:
    """Predict and score a task as `dualtoken eval run` does, on `most` evenly spread items (None: all)."""
    settings = Settings(data=data.folder)
    loaded = load_data(task, settings)
    if most is not None:
        loaded = replace(loaded, items=evenly_spread(loaded.items, most))
    folder = predict(task, PipelinePredictor(pipeline), output, settings, loaded=loaded)
    result = score(task, output, settings, judges, loaded)
    samples = map(json.loads, (folder / SAMPLES).read_text(encoding="utf-8").splitlines())
    return TaskRun(folder, result, list(zip(loaded.items, samples, strict=True)))


def question_tasks(scenes: int) -> list[Task]:
    """Question tasks: `scenes` scenes, a third of them again in other words, and the held-out sets."""
    held_out = [get_task(name) for name in ("easyvqa", "nlvr", "clothing")]
    return [Scenes(scenes), *held_out, RewordedScenes((scenes + 2) // 3)]


def scenes_to_generate(count: int, skills: Sequence[str] | None = None) -> Task:
    """`count` prompts of one object, and half as many of each other skill."""
    return ScenesT2i(
        {skill: count if skill == "single_object" else (count + 1) // 2 for skill in skills or EXACT_SKILLS}
    )


def by_kind(run: TaskRun) -> dict[str, float | None]:
    """The accuracy of each kind of question."""
    kinds = sorted({item.target["kind"] for item, _ in run.samples})
    return {kind: run.metrics.get(f"accuracy, {kind}", run.metrics["accuracy"]) for kind in kinds}


def by_skill(run: TaskRun) -> dict[str, dict[str, float | None]]:
    """Percent of generated images by skill: all correct, colours correct, without any object."""
    skills = dict.fromkeys(item.target["skill"] for item, _ in run.samples)
    columns = {"correct": "", "colour": ": colours", "empty": ": empty"}
    return {
        skill: {name: run.metrics[f"{skill.replace('_', ' ')}{end}"] for name, end in columns.items()}
        for skill in skills
    }
