"""Make a page of a model's generated scenes, dialogues, reconstructions and mistakes, from fixed seeds.

Nothing is selected by hand: prompts and dialogues are the first of their held-out lists, images and mistakes
are evenly spread over theirs. Generated scenes show the verdict of `data_pipelines.scenes.checker`.

Example:
  python -m dualtoken.scripts.nano.gallery --model nano --output docs/gallery
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.files import atomic_file, write_text
from ...common.images.reading import load_image
from ...eval.data.held_out import EVALUATION_SEED, HELD_OUT, HeldOut, evenly_spread
from .. import cli, options
from ..options import integer
from .contact_sheet import card_sheet, contact_sheet, thumbnail

if TYPE_CHECKING:
    from PIL import Image

    from ...mllm import DualTokenPipeline

CELL, COLUMNS = 128, 6
#: Questions of a set that are asked to find mistakes.
ASKED = 120
PROMPTS = (
    "a red circle",
    "a yellow star",
    "a purple square",
    "a blue square to the left of a yellow triangle",
    "three green crosses",
    "sunflower emoji",
)
QUESTIONS = ("How many objects are there?", "Is there a circle?")
PAGE = Path(__file__).with_name("gallery.md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    options.add_shared(parser, "--model", "--device")
    add("--output", type=Path, required=True, help="folder for README.md and the images")
    add("--overview", type=Path, help="also write an image with some of everything")
    add("--dialogues", type=integer(1), default=6, help="how many (default: 6)")
    add("--heldout", type=Path, default=HELD_OUT, help="held-out sets (default: those of the package)")


def run(args: argparse.Namespace) -> int:
    pipeline = options.load_pipeline(args.model, options.resolve_device(args.device))
    data = HeldOut(args.heldout)
    sheets = {
        "drawings": generated_scenes(pipeline, data),
        "reconstructions": reconstructions(pipeline, data),
        "mistakes": mistakes(pipeline, data),
    }
    tables, shown = dialogues(pipeline, args.dialogues)
    for name, image in {**sheets, **shown}.items():
        with atomic_file(args.output / f"{name}.png") as partial:
            image.save(partial, optimize=True)
    write_text(
        args.output / "README.md", PAGE.read_text().format(model=args.model, dialogues="\n".join(tables))
    )
    if args.overview:
        with atomic_file(args.overview) as partial:
            overview(pipeline, data).save(partial)
    print(args.output / "README.md")
    return 0


def overview(pipeline: DualTokenPipeline, data: HeldOut) -> Image.Image:
    """One image of everything: generated images of seed 0, answers and reconstructions."""
    from ...data_pipelines.scenes.scene import HELD_OUT_SEED, random_scene, render

    rows = [
        (f"“{prompt}”", _thumbnails(pipeline.generate_images(prompt, COLUMNS, seed=0))) for prompt in PROMPTS
    ]
    scenes = [render(random_scene(np.random.default_rng(HELD_OUT_SEED + n)), 64) for n in range(COLUMNS)]
    answers = [pipeline.answer_many([(scene, question) for scene in scenes]) for question in QUESTIONS]
    text = "   ".join(f"{q} {', '.join(a)}." for q, a in zip(QUESTIONS, answers, strict=True))
    rows.append((text, _thumbnails(scenes)))
    rows += [row for name in ("emoji", "clothing") for row in _before_and_after(pipeline, data, name)]
    return contact_sheet(rows, CELL)


def generated_scenes(pipeline: DualTokenPipeline, data: HeldOut) -> Image.Image:
    """An image for the first held-out prompts of every skill, with the checker's verdict."""
    from ...data_pipelines.scenes.language import EXACT_SKILLS
    from ...eval.tasks.scenes_t2i import ScenesT2i
    from .tasks import run_task

    with TemporaryDirectory() as output:
        run = run_task(pipeline, ScenesT2i(dict.fromkeys(EXACT_SKILLS, COLUMNS)), Path(output), data)
        cards = [
            (f"{item.prompt}\n{sample['parsed'][0]['reason'] or 'right'}", [load_image(run.folder / file)])
            for item, sample in run.samples
            for file in sample["prediction"]
        ]
    return card_sheet(cards, COLUMNS, CELL)


def reconstructions(pipeline: DualTokenPipeline, data: HeldOut) -> Image.Image:
    """Held-out images of every set above their reconstructions."""
    sets = [folder.name for folder in sorted(data.folder.iterdir()) if folder.is_dir()]
    return contact_sheet([row for name in sets for row in _before_and_after(pipeline, data, name)], CELL)


def mistakes(pipeline: DualTokenPipeline, data: HeldOut) -> Image.Image:
    """Some wrong answers of every set of questions, evenly spread."""
    from .tasks import question_tasks, run_task

    cards = []
    with TemporaryDirectory() as output:
        for task in question_tasks(ASKED):
            wrong = [
                (
                    f"{item.prompt}\nanswer: {sample['prediction']}\nright: {item.target['answer']}",
                    list(map(load_image, item.images)),
                )
                for item, sample in run_task(pipeline, task, Path(output), data, most=ASKED).samples
                if not sample["score"]
            ]
            cards += evenly_spread(wrong, COLUMNS)
    return card_sheet(cards, COLUMNS, CELL)


def dialogues(pipeline: DualTokenPipeline, count: int) -> tuple[list[str], dict[str, Image.Image]]:
    """The first held-out dialogues as Markdown tables, and the images they name.

    The user's turns are those of the dialogue; the history holds the model's own turns, not the reference's.
    """
    from ...data_pipelines.scenes.convert import SceneOptions, scene_record

    options = SceneOptions(seed=EVALUATION_SEED, task="chat", grid=8)
    lines: list[str] = []
    images: dict[str, Image.Image] = {}
    for number in range(1, count + 1):
        record = scene_record(options, number)
        lines += ["", f"### Dialogue {number}", "", "| user | model | right |", "|---|---|---|"]
        history: list[dict[str, Any]] = []
        for ask, right in zip(record.messages[::2], record.messages[1::2], strict=True):
            history.append(dict(ask))
            reply = pipeline.chat(history, max_new_tokens=100, seed=number)
            history.append({"role": "assistant", "content": reply})
            cells = [
                _cell(content, f"dialogue-{number}-{len(history) // 2}-{who}", images)
                for who, content in (("user", ask["content"]), ("model", reply), ("right", right["content"]))
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines, images


def _cell(content: Any, name: str, images: dict[str, Image.Image]) -> str:
    """Content parts as a cell of a Markdown table; their images are added to `images`."""
    words = []
    for number, part in enumerate(content):
        if part["type"] == "text":
            words.append(part["text"].strip().replace("|", "\\|").replace("\n", " "))
        else:
            images[f"{name}-{number}"] = thumbnail(part["image"].convert("RGB"), CELL)
            words.append(f"![]({name}-{number}.png)")
    return " ".join(words)


def _before_and_after(
    pipeline: DualTokenPipeline, data: HeldOut, name: str
) -> list[tuple[str, list[Image.Image]]]:
    chosen = evenly_spread(data.records(name), COLUMNS)
    images = [record.image_parts()[0]["image"].convert("RGB") for record in chosen]
    return [
        (f"{name}, held out", _thumbnails(images)),
        ("… and from their pixel codes", _thumbnails(map(pipeline.reconstruct, images))),
    ]


def _thumbnails(images: Iterable[Image.Image]) -> list[Image.Image]:
    return [thumbnail(image, CELL) for image in images]


if __name__ == "__main__":
    cli.run_main(__spec__)
