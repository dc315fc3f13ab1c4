"""Evaluate the nano model on held-out data, as one JSON object.

Runs the registered tasks on held-out data and measures the tokenizer; every number is that of
`dualtoken eval run --model nano --tasks scenes,easyvqa,nlvr,clothing,scenes-reworded,scenes-t2i,emoji-t2i`
and of `dualtoken eval tokenizer`. Scenes come from seeds of 10⁹ and above; easy-VQA, emoji and photos from
held-out splits, a part of which ships with the package. Generated scenes are judged by
`data_pipelines.scenes.checker`, whose verdict on reconstructions of true scenes is reported as a ceiling. The
same machine gives the same numbers again.

Example:
  python -m dualtoken.scripts.nano.evaluate --model nano --output nano.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...common.files import write_text
from ...common.machine import processor_name
from ...eval.data.held_out import HELD_OUT, HeldOut, emoji_prompt, image_prompts, images_of, named_objects
from .. import cli, options
from ..options import integer

if TYPE_CHECKING:
    from PIL import Image

    from ...eval.tokenizer.text_ranker import TextRanker
    from ...mllm import DualTokenPipeline
    from .tasks import TaskRun

IMAGE_SETS = ("easyvqa", "nlvr", "emoji", "clothing", "caltech")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    options.add_shared(parser, "--model", "--device")
    add("--scenes", type=integer(1), default=600, help="scenes for questions and reconstructions")
    add(
        "--drawings",
        type=integer(1),
        default=100,
        help="generated images of one object (others: half)",
    )
    add("--heldout", type=Path, default=HELD_OUT, help="held-out sets (default: those of the package)")
    add("--teacher", type=Path, help="its SigLIP teacher: reports what codes keep of it, and judges emoji")
    add(
        "--emoji",
        type=Path,
        help="folder of 'dualtoken prepare emoji': also rank the names of its true images",
    )
    add("--output", type=Path, help="also write the JSON here")


def run(args: argparse.Namespace) -> int:
    import torch

    started = time.perf_counter()
    device = options.resolve_device(args.device)
    result: dict[str, Any] = {
        "model": args.model,
        "version": __version__,
        "machine": {
            "device": processor_name(device),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        **evaluate(args, device),
        "seconds": round(time.perf_counter() - started, 1),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        write_text(args.output, text + "\n")
    return 0


def evaluate(args: argparse.Namespace, device: str) -> dict[str, Any]:
    """All sections of the result."""
    from ...eval.judges.protocols import Judges
    from ...eval.tasks.emoji_t2i import EmojiT2i
    from .tasks import question_tasks, run_task, scenes_to_generate

    pipeline, data = options.load_pipeline(args.model, device), HeldOut(args.heldout)
    own, teacher = rankers(args.model, args.teacher, device)
    judge = teacher or own
    tasks = [*question_tasks(args.scenes), scenes_to_generate(args.drawings), EmojiT2i(args.drawings)]
    with TemporaryDirectory() as folder:
        judges = Judges(ranker=lambda: judge)
        runs = {task.name: run_task(pipeline, task, Path(folder), data, judges) for task in tasks}
    generated, emoji = runs.pop("scenes-t2i"), runs.pop("emoji-t2i")
    return {
        "tokenizer": tokenizer_metrics(pipeline, data, args.scenes),
        "answers": {name.replace("-", "_"): answer_metrics(run) for name, run in runs.items()},
        "drawings": scene_metrics(pipeline, generated),
        "named": naming_metrics(own, teacher, args.scenes),
        "emoji": emoji_metrics(emoji, judge, data.emoji_names(), images_by_name(args.emoji)),
    }


def tokenizer_metrics(pipeline: DualTokenPipeline, data: HeldOut, scenes: int) -> dict[str, Any]:
    """PSNR (dB, mean over images) by source, and the share of codes used at every level over all sources."""
    from ...eval.tokenizer.measure import measure_tokenizer

    tokenizer, processor = pipeline.model.require_visual_tokenizer(), pipeline.processor.image_processor

    def measure(images: list[Any], metric: str) -> Any:
        return measure_tokenizer(tokenizer, images, [metric], processor=processor)["figures"]

    sets = {"scenes": data.scenes(scenes), **{name: data.records(name) for name in IMAGE_SETS}}
    images = {name: images_of(records) for name, records in sets.items()}
    every = [image for of_set in images.values() for image in of_set]
    codes = measure(every, "codebook")
    return {
        "psnr_db": {name: round(measure(of_set, "psnr")["psnr"], 2) for name, of_set in images.items()},
        "images": len(every),
        "codebook_usage": {
            name: [round(share, 4) for share in codes[f"{name}_usage"]] for name in ("pixel", "semantic")
        },
    }


def answer_metrics(run: TaskRun) -> dict[str, Any]:
    """Exact-match accuracy (percent) of greedy answers, overall and by kind of question."""
    from .tasks import by_kind

    kinds = {kind: _rounded(accuracy) for kind, accuracy in by_kind(run).items()}
    return {"accuracy": _rounded(run.metrics["accuracy"]), "questions": run.result["n"], "by_kind": kinds}


def scene_metrics(pipeline: DualTokenPipeline, run: TaskRun) -> dict[str, Any]:
    """Percent of generated scenes by skill, and the checker's ceiling on the same scenes reconstructed."""
    from ...eval.tokenizer.checked_scenes import checked_reconstructions
    from .tasks import by_skill

    tokenizer, processor = pipeline.model.require_visual_tokenizer(), pipeline.processor.image_processor
    result: dict[str, Any] = {}
    for skill, found in by_skill(run).items():
        count = sum(item.target["skill"] == skill for item, _ in run.samples)
        ceiling = checked_reconstructions(tokenizer, processor, image_prompts(skill, count))
        found["checker_on_reconstructions"] = ceiling
        result[skill] = {name: _rounded(value) for name, value in found.items()} | {"drawings": count}
    return result


def naming_metrics(own: TextRanker, teacher: TextRanker | None, scenes: int) -> dict[str, float]:
    """Percent of one-object scenes whose colour and shape is the nearest text, from the tokenizer's semantic
    codes and by its teacher, and the share of the teacher's accuracy that is kept."""
    images, names = named_objects(scenes)
    metrics = {"from_codes": round(own.accuracy(images, names), 2)}
    if teacher is not None:
        metrics["teacher"] = round(teacher.accuracy(images, names), 2)
        metrics["kept"] = round(100 * metrics["from_codes"] / max(metrics["teacher"], 1e-9), 2)
    return metrics


def emoji_metrics(
    run: TaskRun, judge: TextRanker, names: list[str], true_images: Mapping[str, Image.Image]
) -> dict[str, Any]:
    """Percent of generated emoji whose name the judge ranks first, or in the first five, among all names.

    true_images: emoji by name, on which the judge's ceiling is measured.
    """
    metrics = {name: _rounded(run.metrics[name]) for name in ("top1", "top5")}
    known = [name for item, _ in run.samples if (name := item.target["name"]) in true_images]
    if known:
        correct = [names.index(name) for name in known]
        ranks = judge.ranks([true_images[name] for name in known], correct, list(map(emoji_prompt, names)))
        metrics["judge_on_true_images"] = round(100 * sum(rank < 5 for rank in ranks) / len(ranks), 1)
    return {**metrics, "drawings": run.result["n"], "names": len(names)}


def images_by_name(folder: Path | None) -> dict[str, Image.Image]:
    """The first image of every emoji of a prepared set, by name."""
    if folder is None:
        return {}
    from ...data_pipelines.shards.reader import ShardDataset

    dataset = ShardDataset(folder)
    images: dict[str, Image.Image] = {}
    for record in map(dataset.record, range(len(dataset))):
        images.setdefault(record.texts()[-1], record.image_parts()[0]["image"].convert("RGB"))
    return images


def rankers(model: str, teacher: Path | None, device: str) -> tuple[TextRanker, TextRanker | None]:
    """Rankers by the model's tokenizer and by its teacher."""
    from ...eval.tokenizer.text_ranker import TextRanker
    from ...mllm.assembly.model_folder import resolve_model

    own = TextRanker(Path(resolve_model(model)) / "visual_tokenizer", device)
    return own, None if teacher is None else TextRanker(teacher, device)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


if __name__ == "__main__":
    cli.run_main(__spec__)
