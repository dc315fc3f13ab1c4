"""What the nano model reaches on data it was never trained on, as one JSON object.

Scenes come from seeds of 10⁹ and above; easy-VQA, emoji and photos from held-out splits, a part of which
ships with the package. Every drawing is judged by `data_pipelines.scenes.checker`, whose own ceiling (its
verdict on reconstructions of true scenes) is reported beside it. The same seeds give the same numbers on
the same machine.

Example:
  python -m dualtoken.scripts.nano.evaluate --model nano --output nano.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ... import __version__
from ...common.images.reading import load_image
from ...eval.data.held_out import (
    EVALUATION_SEED,
    HELD_OUT,
    Asked,
    HeldOut,
    drawing_prompts,
    emoji_prompt,
    evenly_spread,
    named_objects,
    normalise,
    single_questions,
)
from ..options import add_device_argument, add_model_argument, integer, load_pipeline, resolve_device

if TYPE_CHECKING:
    from PIL import Image

    from ...data_pipelines.records import Record
    from ...data_pipelines.scenes.checker import CheckResult
    from ...eval.tokenizer.text_ranker import TextRanker
    from ...mllm import DualTokenPipeline

QUESTION_SETS = ("scenes", "easyvqa", "nlvr", "clothing", "scenes_reworded")
CODE_SETS = ("easyvqa", "nlvr", "emoji", "clothing", "caltech")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    add_device_argument(parser)
    parser.add_argument(
        "--scenes", type=integer(1), default=600, help="scenes to ask about and to reconstruct"
    )
    parser.add_argument(
        "--drawings", type=integer(1), default=100, help="drawings of one object; others: a half each"
    )
    parser.add_argument(
        "--heldout", type=Path, default=HELD_OUT, help="held-out sets (default: those of the package)"
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        help="its SigLIP teacher: how much codes keep of it; and it judges emoji",
    )
    parser.add_argument(
        "--emoji",
        type=Path,
        help="folder of 'dualtoken prepare emoji': also rank the names of its true images",
    )
    parser.add_argument("--output", type=Path, help="also write the JSON here")


def run(args: argparse.Namespace) -> int:
    device = resolve_device(args.device)
    pipeline = load_pipeline(args.model, device)
    started = time.perf_counter()
    result: dict[str, Any] = {"model": args.model, "version": __version__, "machine": machine(device)}
    data = HeldOut(args.heldout)
    result["tokenizer"] = tokenizer_figures(pipeline, data, args.scenes)
    result["answers"] = answer_figures(pipeline, data, args.scenes)
    result["drawings"] = drawing_figures(pipeline, args.drawings, EVALUATION_SEED)
    own, teacher = rankers(args.model, args.teacher, device)
    result["named"] = naming_figures(own, teacher, args.scenes)
    true_images = images_by_name(args.emoji)
    result["emoji"] = emoji_figures(pipeline, teacher or own, data.emoji_names(), args.drawings, true_images)
    result["seconds"] = round(time.perf_counter() - started, 1)
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        from ...common.files import atomic_file

        with atomic_file(args.output) as partial:
            partial.write_text(text + "\n")
    return 0


def machine(device: str) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


# ---- tokenizer


def tokenizer_figures(pipeline: DualTokenPipeline, data: HeldOut, scenes: int) -> dict[str, Any]:
    """PSNR (dB, mean over images) by source, and the share of codes used at every level over all of them."""
    meter = CodeMeter(pipeline)
    sets = {"scenes": data.scenes(scenes), **{name: data.records(name) for name in CODE_SETS}}
    psnr = {
        name: meter.measure([part["image"] for record in records for part in record.image_parts()])
        for name, records in sets.items()
    }
    return {"psnr_db": psnr, "images": meter.images, "codebook_usage": meter.usage()}


class CodeMeter:
    """Reconstructs images in batches, and counts the codes of both branches."""

    def __init__(self, pipeline: DualTokenPipeline) -> None:
        self.pipeline = pipeline
        config = pipeline.model.require_visual_tokenizer().config
        self.counts = {
            name: np.zeros((quantizer.depth, quantizer.num_codes), dtype=np.int64)
            for name, quantizer in config.quantizers.items()
        }
        self.images = 0

    def measure(self, images: Sequence[Image.Image], batch_size: int = 64) -> float:
        import torch

        tokenizer = self.pipeline.model.require_visual_tokenizer()
        values: list[float] = []
        for start in range(0, len(images), batch_size):
            batch = self.pipeline.processor.image_processor(list(images[start : start + batch_size]))
            pixels = batch["pixel_values"].to(self.pipeline.device)
            with torch.inference_mode():
                codes = tokenizer.encode(pixels)
                decoded = tokenizer.decode(codes.pixel).clamp(-1, 1)
            error = ((decoded - pixels) / 2).square().flatten(1).mean(1)  # of values in [0, 1]
            values.extend((-10 * error.clamp(min=1e-10).log10()).tolist())
            for name, chosen in (("pixel", codes.pixel), ("semantic", codes.semantic)):
                for depth, counts in enumerate(self.counts[name]):
                    counts += np.bincount(chosen[..., depth].flatten().cpu().numpy(), minlength=len(counts))
        self.images += len(images)
        return round(float(np.mean(values)), 2)

    def usage(self) -> dict[str, list[float]]:
        return {
            name: [round(float((c > 0).mean()), 4) for c in counts] for name, counts in self.counts.items()
        }


def naming_figures(own: TextRanker, teacher: TextRanker | None, scenes: int) -> dict[str, float]:
    """Percent of scenes of one object whose name, colour and shape, is the nearest to the image among all.

    By the tokenizer's own towers, from semantic codes, and by its teacher, all of which was to be kept.
    """
    images, names = named_objects(scenes)
    figures = {"from_codes": round(own.accuracy(images, names), 2)}
    if teacher is not None:
        figures["teacher"] = round(teacher.accuracy(images, names), 2)
        figures["kept"] = round(100 * figures["from_codes"] / max(figures["teacher"], 1e-9), 2)
    return figures


# ---- answers


def answer_figures(
    pipeline: DualTokenPipeline, data: HeldOut, scenes: int, sets: Sequence[str] = QUESTION_SETS
) -> dict[str, Any]:
    """Exact-match accuracy (percent) of greedy answers, by set and by kind of question (clothing: by label).

    scenes_reworded: the first third of the scenes' questions again, in words that no training uses.
    """
    result = {}
    for name in sets:
        questions = asked_questions(data, name, scenes)
        right: dict[str, list[bool]] = defaultdict(list)
        for asked, _, is_right in answered(pipeline, questions):
            right[asked.kind].append(is_right)
        every = [value for values in right.values() for value in values]
        by_kind = {kind: percent(values) for kind, values in sorted(right.items())}
        result[name] = {"accuracy": percent(every), "questions": len(every), "by_kind": by_kind}
    return result


def answered(pipeline: DualTokenPipeline, questions: Sequence[Asked]) -> list[tuple[Asked, str, bool]]:
    """The questions with the model's greedy answers, and whether these are right."""
    answers = pipeline.answer_many(
        [(q.images, q.question) for q in questions], max_new_tokens=12, batch_size=48
    )
    return [
        (asked, answer, normalise(answer) == normalise(asked.answer))
        for asked, answer in zip(questions, answers, strict=True)
    ]


def asked_questions(data: HeldOut, name: str, scenes: int) -> list[Asked]:
    """The questions of one of QUESTION_SETS, each on its own; `scenes` bounds those about scenes."""
    if name == "scenes":
        return [next(single_questions(record)) for record in data.scenes(scenes)]
    if name == "scenes_reworded":
        return [next(single_questions(record)) for record in data.scenes((scenes + 2) // 3, reworded=True)]
    most = 3 if name == "easyvqa" else None
    asked = [one for record in data.records(name) for one in list(single_questions(record))[:most]]
    return [replace(one, kind=one.answer) for one in asked] if name == "clothing" else asked


# ---- drawings


def drawing_figures(
    pipeline: DualTokenPipeline,
    drawings: int,
    seed: int,
    skills: Sequence[str] | None = None,
    **sampling: Any,
) -> dict[str, Any]:
    """Per skill, percent of drawings that show exactly what was asked for, and with the right colours."""
    from ...data_pipelines.scenes.checker import check
    from ...data_pipelines.scenes.language import EXACT_SKILLS

    result: dict[str, Any] = {}
    for skill in skills or EXACT_SKILLS:
        count = drawings if skill == "single_object" else (drawings + 1) // 2
        drawn = drawn_and_checked(pipeline, skill, count, seed, **sampling)
        verdicts = [verdict for _, _, verdict in drawn]
        scenes = [load_image(record.image_parts()[0]["image"]) for record, _, _ in drawn]
        ceiling = [
            check(record.metadata["spec"], pipeline.reconstruct(scene))
            for (record, _, _), scene in zip(drawn, scenes, strict=True)
        ]
        result[skill] = {
            "correct": percent([verdict.correct for verdict in verdicts]),
            "colour": percent([verdict.colour_correct for verdict in verdicts]),
            "empty": percent([not verdict.found for verdict in verdicts]),
            "checker_on_reconstructions": percent([verdict.correct for verdict in ceiling]),
            "drawings": count,
        }
    return result


def drawn_and_checked(
    pipeline: DualTokenPipeline, skill: str, count: int, seed: int = EVALUATION_SEED, **sampling: Any
) -> list[tuple[Record, Image.Image, CheckResult]]:
    """The first `count` prompts of a skill, each drawn once, with the checker's verdict."""
    from ...data_pipelines.scenes.checker import check

    records = drawing_prompts(skill, count, seed)
    prompts = [record.texts()[0] for record in records]
    drawn = pipeline.generate_images_many(prompts, 1, list(range(count)), batch_size=32, **sampling)
    return [
        (record, images[0], check(record.metadata["spec"], images[0]))
        for record, images in zip(records, drawn, strict=True)
    ]


# ---- emoji by name


def emoji_figures(
    pipeline: DualTokenPipeline,
    judge: TextRanker,
    names: Sequence[str],
    drawings: int,
    true_images: Mapping[str, Image.Image],
    **sampling: Any,
) -> dict[str, Any]:
    """Percent of emoji drawn by name whose name the judge ranks, among all, first or in the first five.

    true_images: emoji by name; of those that were drawn the judge's own ceiling is reported beside it.
    """
    count = min(drawings, len(names))
    chosen = evenly_spread(range(len(names)), count)
    prompts = [emoji_prompt(name) for name in names]
    drawn = pipeline.generate_images_many(
        [prompts[index] for index in chosen], 1, list(range(count)), batch_size=32, **sampling
    )
    known = [index for index in chosen if names[index] in true_images]
    judged = [*(images[0] for images in drawn), *(true_images[names[index]] for index in known)]
    ranks = judge.ranks(judged, [*chosen, *known], prompts)
    result: dict[str, Any] = {f"top{limit}": percent([r < limit for r in ranks[:count]]) for limit in (1, 5)}
    if known:
        result["judge_on_true_images"] = percent([rank < 5 for rank in ranks[count:]])
    return {**result, "drawings": count, "names": len(names)}


def images_by_name(folder: Path | None) -> dict[str, Image.Image]:
    """The first image of every emoji of a prepared set, by its name."""
    if folder is None:
        return {}
    from ...data_pipelines.shards.reader import ShardDataset

    dataset = ShardDataset(folder)
    images: dict[str, Image.Image] = {}
    for record in map(dataset.record, range(len(dataset))):
        images.setdefault(record.texts()[-1], record.image_parts()[0]["image"].convert("RGB"))
    return images


def rankers(model: str, teacher: Path | None, device: str) -> tuple[TextRanker, TextRanker | None]:
    """The towers of the model's own tokenizer, and those of its teacher."""
    from ...eval.tokenizer.text_ranker import TextRanker
    from ...mllm.assembly.model_folder import resolve_model

    own = TextRanker(Path(resolve_model(model)) / "visual_tokenizer", device)
    return own, None if teacher is None else TextRanker(teacher, device)


def percent(values: Sequence[bool]) -> float:
    return round(100 * Counter(values)[True] / max(1, len(values)), 1)


if __name__ == "__main__":
    from ..cli import run_module

    sys.exit(run_module("nano.evaluate", "python -m dualtoken.scripts.nano.evaluate", sys.argv[1:]))
