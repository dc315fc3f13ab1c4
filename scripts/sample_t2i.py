"""Generate images for one prompt, several, or a file of prompts (one on each line).

Writes into a folder: the images (PROMPT_IMAGE.png, both counted from 0), grid.png with a row for each prompt,
and samples.json with every setting, prompt, seed and version. The files appear together at the end and
replace only those of an earlier call. Sampling options default to the model's own. The same call on the same
machine gives the same bytes; another batch size may round single pixel values differently.

Example:
  dualtoken sample --prompt "a red circle" --num-images 4 --output samples
  dualtoken sample --prompts-file prompts.txt --guidance-scale 1.5 --top-p 0.95 --seed 7 --output samples
"""

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..common.errors import UserError
from ..common.json_files import enumerate_lines, read_text
from ..common.output_files import check_files, staged_files
from ..common.values import whole_number
from . import cli, options
from .nano.contact_sheet import contact_sheet, thumbnail

if TYPE_CHECKING:
    from ..mllm import DualTokenPipeline

DESCRIPTION, GRID = "samples.json", "grid.png"
IMAGE_NAME = re.compile(r"\d{4,}_\d{2,}\.png")
SAMPLING_OPTIONS = (
    "guidance_scale",
    "temperature",
    "top_k",
    "top_p",
    "guidance_schedule",
    "sampler",
    "batch_invariant",
)
GRID_ROWS, GRID_COLUMNS = 32, 32  # of a sheet that can still be viewed
MOST_IMAGES = 100_000  # of all prompts
LARGEST_PROMPTS_FILE = 64_000_000  # bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompt",
        type=options.words,
        action="append",
        help="what the images show; may be given several times",
    )
    prompts.add_argument(
        "--prompts-file", type=options.path, metavar="FILE", help="a text file with a prompt on each line"
    )
    add("--output", type=options.path, metavar="DIR", required=True, help="the folder to write")
    add("--num-images", type=options.num_images, default=4, help="images for each prompt (default: 4)")
    add("--batch-size", type=options.batch_size, default=16, help="images generated at once (default: 16)")
    add("--seed", type=options.seed, default=0, help="another seed, other images (default: 0)")
    add(
        "--guidance-scale",
        "--guidance",
        type=options.guidance,
        help="classifier-free guidance; 1 is none, more follows the prompt more closely",
    )
    add("--temperature", type=options.temperature, help="0 takes the likeliest codes")
    add("--top-k", type=options.top_k, help="sample from the k likeliest codes; 0: from all")
    add(
        "--top-p",
        type=options.top_p,
        help="sample from the likeliest codes of this joint probability; 1: from all",
    )
    add(
        "--guidance-schedule",
        choices=("constant", "linear", "cosine"),
        help="keep the guidance, or let it rise from 1 at the first position to --guidance-scale at the last",
    )
    add("--sampler", choices=("inverse_cdf", "gumbel"), help="how a code is sampled from its probabilities")
    add(
        "--batch-invariant",
        type=options.batch_invariant,
        metavar="N",
        help="compute every image in a batch of N of its prompt, so that in bf16, too, its codes are equal "
        "for any --num-images and --batch-size; 0: batches as they come",
    )
    add(
        "--compile",
        action="store_true",
        help="compile the image loop: a minute or more at the start, then faster (for many images)",
    )
    options.add_shared(parser, "--model", "--device", "--quantization")


def run(args: argparse.Namespace) -> int:
    from ..eval.harness.identity import versions
    from ..mllm.generation.sampling import ImageSamplingConfig

    prompts = args.prompt or read_prompts(args.prompts_file)
    whole_number(len(prompts) * args.num_images, "the number of prompts times --num-images", 1, MOST_IMAGES)
    names = [image_name(row, index) for row in range(len(prompts)) for index in range(args.num_images)]
    check_files(args.output, [DESCRIPTION, GRID, *names])
    given = {name: getattr(args, name) for name in SAMPLING_OPTIONS if getattr(args, name) is not None}
    device = options.resolve_device(args.device)
    with staged_files(
        args.output, "sample", outdated=lambda name: bool(IMAGE_NAME.fullmatch(name))
    ) as folder:
        pipeline = options.load_pipeline(args.model, device, args.quantization)
        settings = {
            "num_images": args.num_images,
            "seed": args.seed,
            "batch_size": args.batch_size,
            **asdict(ImageSamplingConfig.of(pipeline.model.config.image_sampling, given)),
        }
        images = generate_all(pipeline, prompts, settings, folder, args.compile)
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
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    print(f"{len(images)} images in {args.output}; all of them on {args.output / GRID}")
    return 0


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file, its lines that are not blank. UserError if there are none."""
    text = read_text(file, LARGEST_PROMPTS_FILE)
    prompts = [line.strip() for _, line in enumerate_lines(text)]
    if not prompts:
        raise UserError(f"--prompts-file {file} holds no prompt; write one on each line")
    return [options.text_argument(prompt, f"a prompt of {file}") for prompt in prompts]


def image_name(row: int, index: int) -> str:
    """The file of image `index` of prompt `row`, both counted from 0."""
    return f"{row:04}_{index:02}.png"


def generate_all(
    pipeline: "DualTokenPipeline", prompts: list[str], settings: dict[str, Any], folder: Path, compile: bool
) -> list[dict[str, Any]]:
    """Save every prompt's images and the contact sheet; returns the images' entries of samples.json."""
    entries: list[dict[str, Any]] = []
    rows: list[tuple[str, list[Image.Image]]] = []
    generated = pipeline.iter_images(prompts, **settings, compile=compile, progress=True)
    for row, (prompt, images) in enumerate(zip(prompts, generated, strict=True)):
        for index, image in enumerate(images):
            file = image_name(row, index)
            image.save(folder / file)
            entries.append({"file": file, "prompt": prompt, "seed": settings["seed"], "index": index})
        if row < GRID_ROWS:
            rows.append((prompt, [thumbnail(image) for image in images[:GRID_COLUMNS]]))
    contact_sheet(rows).save(folder / GRID)
    return entries


if __name__ == "__main__":
    cli.run_main(__spec__)
