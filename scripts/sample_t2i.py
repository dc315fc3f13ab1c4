"""Draw images for one prompt, several, or a file of prompts (one on each line).

Writes into a folder: the images (PROMPT_IMAGE.png, both counted from 0), grid.png with a row for each prompt,
and samples.json with every setting, prompt, seed and version. The files appear together at the end; images
that an earlier call left in the folder, as told by its samples.json, are replaced. Sampling options that are
not given are the model's own. The same call on the same machine gives the same bytes; with another batch size
single pixel values may be rounded differently.

Example:
  dualtoken sample --prompt "a red circle" --num-images 4 --output samples
  dualtoken sample --prompts-file prompts.txt --guidance 1.5 --top-p 0.95 --seed 7 --output samples
"""

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..common.errors import UserError
from .contact_sheet import contact_sheet, thumbnail
from .options import (
    add_device_argument,
    add_model_argument,
    add_quantization_argument,
    integer,
    load_pipeline,
    number,
    resolve_device,
    text_argument,
)

if TYPE_CHECKING:
    from ..mllm import DualTokenPipeline

DESCRIPTION, GRID = "samples.json", "grid.png"
IMAGE_NAME = re.compile(r"\d{4,}_\d{2,}\.png")
SAMPLING_OPTIONS = ("guidance_scale", "temperature", "top_k", "top_p", "guidance_schedule", "sampler")
GRID_ROWS = 32  # a sheet of more prompts would be too big to look at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", help="what to draw; may be given several times")
    prompts.add_argument("--prompts-file", metavar="FILE", help="a text file with a prompt on each line")
    parser.add_argument("--output", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument(
        "--num-images", type=integer(1), default=4, help="images for each prompt (default: 4)"
    )
    parser.add_argument(
        "--batch-size", type=integer(1), default=16, help="images drawn at once (default: 16)"
    )
    parser.add_argument("--seed", type=integer(0), default=0, help="another seed, other images (default: 0)")
    parser.add_argument(
        "--guidance",
        dest="guidance_scale",
        type=number(0),
        help="classifier-free guidance; 1 is none, more follows the prompt more closely",
    )
    parser.add_argument("--temperature", type=number(0), help="0 takes the likeliest codes")
    parser.add_argument("--top-k", type=integer(0), help="draw from the k likeliest codes; 0: from all")
    parser.add_argument(
        "--top-p",
        type=number(0, 1),
        help="draw from the likeliest codes of this joint probability; 1: from all",
    )
    parser.add_argument(
        "--guidance-schedule",
        choices=("constant", "linear", "cosine"),
        help="keep the guidance, or let it rise from 1 at the first position to --guidance at the last",
    )
    parser.add_argument(
        "--sampler", choices=("inverse_cdf", "gumbel"), help="how a code is drawn from its probabilities"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the drawing loop: a minute or more at the start, then faster (for many images)",
    )
    add_model_argument(parser)
    add_device_argument(parser)
    add_quantization_argument(parser)


def run(args: argparse.Namespace) -> int:
    from ..eval.manifest import versions

    prompts = read_prompts(args)
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {args.output} is a file; name a folder")
    given = {name: getattr(args, name) for name in SAMPLING_OPTIONS if getattr(args, name) is not None}
    device = resolve_device(args.device)
    pipeline = load_pipeline(args.model, device, args.quantization)
    settings = {
        "num_images": args.num_images,
        "seed": args.seed,
        "batch_size": args.batch_size,
        **sampling_options(pipeline, given),
    }
    with staging_folder(output) as folder:
        images = draw_all(pipeline, prompts, settings, folder, args.compile)
        description = {
            "model": args.model,
            "device": device,
            "quantization": args.quantization,
            "compile": args.compile,
            "settings": settings,
            "versions": versions(),
            "images": images,
        }
        text = json.dumps(description, indent=2, ensure_ascii=False)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        publish(folder, output)
    print(f"{len(images)} images in {output}; all of them on {output / GRID}")
    return 0


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of `--prompt`, or of the file's lines that are not blank. UserError if there are none."""
    if args.prompts_file is None:
        return [text_argument(prompt, "--prompt") for prompt in args.prompt]
    try:
        text = Path(args.prompts_file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"--prompts-file {args.prompts_file} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"--prompts-file {args.prompts_file} cannot be read: {error.strerror}") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"--prompts-file {args.prompts_file} holds no prompt; write one on each line")
    return prompts


def sampling_options(pipeline: "DualTokenPipeline", given: dict[str, Any]) -> dict[str, Any]:
    """The sampling options that take effect: the given ones over the model's own. UserError for bad ones."""
    from ..mllm.sampling import ImageSamplingOptions

    return asdict(ImageSamplingOptions(**{**(pipeline.model.config.image_sampling or {}), **given}))


def draw_all(
    pipeline: "DualTokenPipeline", prompts: list[str], settings: dict[str, Any], folder: Path, compile: bool
) -> list[dict[str, Any]]:
    """Draw every prompt's images and the contact sheet; returns what samples.json says of each image."""
    from tqdm import tqdm

    entries: list[dict[str, Any]] = []
    rows: list[tuple[str, list[Image.Image]]] = []
    together = max(1, settings["batch_size"] // settings["num_images"])
    batches = -(-len(prompts) // together) * -(-settings["num_images"] // settings["batch_size"])
    positions = batches * pipeline.model.config.num_positions
    with tqdm(total=positions, unit="position", disable=None) as bar:
        for start in range(0, len(prompts), together):
            some = prompts[start : start + together]
            drawn = pipeline.generate_images_many(
                some, **settings, compile=compile, progress=lambda done, total: bar.update()
            )
            for row, (prompt, images) in enumerate(zip(some, drawn, strict=True), start):
                for index, image in enumerate(images):
                    file = f"{row:04}_{index:02}.png"
                    image.save(folder / file)
                    entries.append({"file": file, "prompt": prompt, "seed": settings["seed"], "index": index})
                if len(rows) < GRID_ROWS:
                    rows.append((prompt, [thumbnail(image) for image in images]))
    contact_sheet(rows).save(folder / GRID)
    return entries


@contextmanager
def staging_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` in which the files are made; it is gone afterwards, whatever happens."""
    folder = output.resolve().parent / f".{output.resolve().name}.partial-{os.getpid()}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, output: Path) -> None:
    """Move the finished files to `output`: the folder as a whole, or file by file into one that exists."""
    if not output.exists():
        os.replace(folder, output)
        return
    new = {path.name for path in folder.iterdir()}
    for name in earlier_images(output) - new:
        (output / name).unlink(missing_ok=True)
    for name in sorted(new, key=lambda name: name == DESCRIPTION):  # the description comes last
        os.replace(folder / name, output / name)


def earlier_images(output: Path) -> set[str]:
    """The images that an earlier call wrote into this folder, by its own description."""
    try:
        entries = json.loads((output / DESCRIPTION).read_text(encoding="utf-8"))["images"]
        return {entry["file"] for entry in entries if IMAGE_NAME.fullmatch(entry["file"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["sample", *sys.argv[1:]]))
