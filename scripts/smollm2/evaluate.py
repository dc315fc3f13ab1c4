"""Evaluate a small model with a published language model: its language, its answers and its images, as JSON.

General questions (task general40), questions about held-out scenes and easy-VQA images, and generated
images of one object, all by exact rules, so that no judge is needed. With --show also three generated images
and five answers, in the folder of the output.

Example:
  python -m dualtoken.scripts.smollm2.evaluate --model runs/smollm2_135m/lora/model --output evaluation.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.files import write_text
from ...common.machine import describe_machine
from ...eval.data.held_out import HELD_OUT, HeldOut, image_prompts
from .. import cli, options
from ..options import integer

if TYPE_CHECKING:
    from ...mllm import DualTokenPipeline

#: Shown besides three images: questions without an image.
SHOWN = ("What is the capital of France?", "What is 7 + 5?", "Write one sentence about a dog.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    options.add_shared(parser, "--model", "--device")
    add("--questions", type=integer(1), default=200, help="of scenes and of easy-VQA (default: 200 each)")
    add("--images", type=integer(1), default=48, help="generated images of one object (default: 48)")
    add("--show", action="store_true", help="also write three images and five answers")
    add("--output", type=Path, required=True, help="the JSON file; predictions are kept beside it")


def run(args: argparse.Namespace) -> int:
    from ...eval import get_task
    from ...eval.tasks.held_out_questions import Scenes
    from ..nano.tasks import by_skill, run_task, scenes_to_generate

    started = time.perf_counter()
    device = options.resolve_device(args.device)
    pipeline, data = options.load_pipeline(args.model, device), HeldOut(HELD_OUT)
    folder = args.output.parent / "tasks"
    general = run_task(pipeline, get_task("general40"), folder, data).metrics
    scenes = run_task(pipeline, Scenes(args.questions), folder, data).metrics
    easy = run_task(pipeline, get_task("easyvqa"), folder, data, most=args.questions).metrics
    drawn = by_skill(run_task(pipeline, scenes_to_generate(args.images, ["single_object"]), folder, data))
    if args.show:
        show(pipeline, args.output.parent)
    result: dict[str, Any] = {
        "model": str(args.model),
        "machine": describe_machine(device),
        "questions": args.questions,
        "images": args.images,
        "general": general["accuracy"],
        "general_by_kind": {
            name.removeprefix("kind/"): value for name, value in general.items() if name.startswith("kind/")
        },
        "scenes": scenes["accuracy"],
        "easyvqa": easy["accuracy"],
        "one_object": drawn["single_object"],
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_text(args.output, json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    return 0


def show(pipeline: DualTokenPipeline, folder: Path) -> None:
    """Write three images of held-out prompts, and five answers: three without an image, two about one."""
    prompts = [record.texts()[0] for record in image_prompts("single_object", 3)]
    for number, prompt in enumerate(prompts):
        pipeline.generate_images(prompt, seed=number)[0].save(
            folder / f"{number}-{prompt.replace(' ', '-')}.png"
        )
    scene = HeldOut().scenes(1)[0]
    image = scene.image_parts()[0]["image"]
    image.save(folder / "asked-about.png")
    asked = [(None, question) for question in SHOWN]
    asked += [(image, question) for question in scene.texts()[0:4:2]]
    answers = pipeline.answer_many(asked, max_new_tokens=64)
    lines = [f"{question}\n    {answer}\n" for (_, question), answer in zip(asked, answers, strict=True)]
    write_text(folder / "answers.txt", "".join(lines))


if __name__ == "__main__":
    cli.run_main(__spec__)
