"""Predict and score.

Items are first split into batches, then batches among ranks. So batches, and with them predictions, do not
depend on the number of ranks or on interruptions.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...common.errors import ImageError, UserError, shown
from ...common.files import atomic_file
from ...common.images.reading import load_image
from ...common.locks import only_process
from ...common.plugins import calling_plugin
from ..judges.judged import JudgedTask, judge_predictions
from ..judges.protocols import Judges
from ..judges.replay import Verdicts
from .identity import ModelIdentity, RunIdentity, data_checksum, prompts_checksum
from .predictions import PredictionWriter, check_predictions, merge_predictions, read_predictions
from .predictor import Predictor
from .results import make_result, sample_lines, write_result
from .task import Item, ScoringContext, Task
from .task_data import Loaded, Settings, load_data, need_images


def run_tasks(
    tasks: Sequence[Task],
    predictor: Predictor,
    output: Path,
    settings: Settings | None = None,
    model: ModelIdentity | None = None,
    judges: Judges | None = None,
) -> dict[str, dict[str, Any]]:
    """Predict and score tasks with one model; returns the content of each task's `result.json` by its name.

    All data are loaded before the first prediction. Resumable: predictions found in `output` are kept.
    """
    settings, results = settings or Settings(), {}
    loaded = [load_data(task, settings) for task in tasks]
    for task, data in zip(tasks, loaded, strict=True):
        predict(task, predictor, output, settings, model, data)
    for task, data in zip(tasks, loaded, strict=True):
        results[task.name] = score(task, output, settings, judges, data)
    return results


def run_folder(output: Path, task: Task, split: str) -> Path:
    """The folder of the predictions and the result of one task."""
    return output / task.name / split


def predict(
    task: Task,
    predictor: Predictor,
    output: Path,
    settings: Settings,
    model: ModelIdentity | None = None,
    loaded: Loaded | None = None,
) -> Path:
    """Make this rank's share of the predictions, resuming an earlier run; returns the folder.

    `loaded` saves loading the data again. UserError if the folder holds predictions of another model, other
    data or other settings.
    """
    loaded = loaded or load_data(task, settings)
    items = loaded.items[: settings.limit]
    need_images(task, items)
    folder = run_folder(output, task, loaded.split)
    identity = _identity(task, loaded, settings, model or ModelIdentity())
    with only_process(folder, f"--output {folder}", part=f"-{settings.rank}" if settings.rank else ""):
        identity.open(folder)
        ids = [item.id for item in items]
        done = read_predictions(folder, ids)
        check_predictions(task.kind, items, done, folder)
        size = settings.batch_size
        starts = range(settings.rank * size, len(items), settings.world * size)
        with PredictionWriter(folder, settings.rank, settings.world) as writer:
            for start in tqdm(starts, desc=task.name, unit="batch", disable=None):
                batch = items[start : start + size]
                if all(item.id in done for item in batch):
                    continue
                made = _predict_batch(task, predictor, batch, start, folder, identity)
                writer.write({item.id: p for item, p in zip(batch, made, strict=True) if item.id not in done})
        if merge_predictions(folder, ids) and task.kind == "image":
            task.write_layout(items, folder)
    return folder


def score(
    task: Task, output: Path, settings: Settings, judges: Judges | None = None, loaded: Loaded | None = None
) -> dict[str, Any]:
    """Score finished predictions, without the model that made them.

    Writes `samples.jsonl` and `result.json` (see `results`), whose content is returned. For a `JudgedTask`
    the judge of answers, where one is given, is asked for verdicts not yet recorded. `loaded` saves loading
    the data again. UserError if predictions are missing or were made from other data.
    """
    judges = judges or Judges()
    folder = run_folder(output, task, task.split_or_default(settings.split))
    identity = RunIdentity.read(folder)
    items = (loaded or load_data(task, settings)).items[: identity.limit]
    for name, checksum in (("data", data_checksum(items)), ("prompts", prompts_checksum(items))):
        if getattr(identity, name) != checksum:
            raise UserError(f"{folder}: the predictions were made from other {name}; give that run's --data")
    predictions = read_predictions(folder, [item.id for item in items])
    check_predictions(task.kind, items, predictions, folder)
    if missing := len(items) - len(predictions):
        raise UserError(
            f"{folder} lacks {missing} of {len(items)} predictions; run `dualtoken eval predict` again, it "
            "resumes where it stopped"
        )
    unasked = [item.id for item in items if predictions[item.id] is None]
    known = predictions | {item.id: _no_answer(task, item) for item in items if item.id in set(unasked)}
    verdicts = Verdicts()
    if isinstance(task, JudgedTask):
        verdicts = judge_predictions(task, items, known, folder, judges.text_judge)
    with calling_plugin(f"task {task.name}: score", type(task)):
        scored = task.score(items, known, ScoringContext(folder, verdicts, judges))
    result = make_result(identity, scored, verdicts.source(), unasked)
    write_result(folder, result, sample_lines(items, predictions, scored))
    return result


def _identity(task: Task, loaded: Loaded, settings: Settings, model: ModelIdentity) -> RunIdentity:
    items = loaded.items[: settings.limit]
    return RunIdentity(
        benchmark=task.name,
        split=loaded.split,
        model=model.model,
        checkpoint=model.checkpoint,
        data=data_checksum(items),
        data_source=loaded.source,
        prompts=prompts_checksum(items),
        generation={**task.generation, **(settings.generation or {}), "batch_size": settings.batch_size},
        seed=settings.seed,
        limit=settings.limit,
        n=len(items),
        n_expected=task.splits[loaded.split],
        device=model.device,
    )


def _no_answer(task: Task, item: Item) -> Any:
    """The prediction scored in place of a missing one: the empty answer, or equally likely choices."""
    return [0.0] * len(item.choices) if task.kind == "choose" else ""


def _predict_batch(
    task: Task, predictor: Predictor, batch: Sequence[Item], start: int, folder: Path, identity: RunIdentity
) -> list[Any]:
    """The predictions of a batch whose first item has index `start`; generated images are written."""
    options = {name: value for name, value in identity.generation.items() if name != "batch_size"}
    if task.kind != "image":
        return _ask(task, predictor, batch, options)
    seeds = [identity.seed + start + number for number in range(len(batch))]
    generated = predictor.generate_images(batch, task.images_per_prompt, seeds, options)
    names = []
    for index, images in enumerate(generated, start):
        names.append([task.image_name(index, number) for number in range(len(images))])
        for name, image in zip(names[-1], images, strict=True):
            with atomic_file(folder / name) as temporary:
                image.save(temporary, format="PNG")
    return names


def _ask(task: Task, predictor: Predictor, batch: Sequence[Item], options: Mapping[str, Any]) -> list[Any]:
    """Answers or log-likelihoods; None for an item with an image that cannot be decoded."""

    def ask(items: Sequence[Item]) -> list[Any]:
        return list(predictor.choose(items) if task.kind == "choose" else predictor.answer(items, options))

    try:
        return ask(batch)
    except ImageError:
        readable = [item for item in batch if _is_readable(item)]
        answers = iter(ask(readable)) if readable else iter(())
        return [next(answers) if item in readable else None for item in batch]


def _is_readable(item: Item) -> bool:
    """Whether all images of an item can be decoded; the reason why not goes to stderr."""
    try:
        for image in item.images:
            load_image(image)
    except ImageError as error:
        print(f"item {shown(item.id)} is not asked: {error}", file=sys.stderr)
        return False
    return True
