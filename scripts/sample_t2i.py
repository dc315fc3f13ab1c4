"""Draw images for one prompt, several, or a file of prompts (one a line).

Writes into a folder: the images (PROMPT_IMAGE.png, both counted from 0), grid.png with a row for each prompt, and
samples.json with every setting, prompt, seed and version. Image i of a prompt depends on the seed and on i only, not
on the batch size. All files appear at the end together; images that an earlier call left in the folder, as told by its
samples.json, are replaced.

Example:
  dualtoken sample --prompt "a red circle" --num-images 4 --output samples
  dualtoken sample --prompts-file prompts.txt --guidance 1.5 --top-p 0.95 --seed 7 --output samples
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from .. import __version__
from ..tokenizer.errors import UserError
from .options import (
    add_device_argument,
    add_model_argument,
    integer,
    load_pipeline,
    number,
    resolve_device,
    text_argument,
)

if TYPE_CHECKING:
    from ..mllm import DualTokenPipeline

JSON_NAME, GRID_NAME = "samples.json", "grid.png"
IMAGE_NAME = re.compile(r"\d{4,}_\d{2,}\.png")
GRID_ROWS, GRID_CELL = 32, 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", help="what to draw; may be given several times")
    prompts.add_argument("--prompts-file", metavar="FILE", help="a text file with a prompt on each line")
    parser.add_argument("--output", metavar="DIR", required=True, help="the folder to write")
    parser.add_argument("--num-images", type=integer(1), default=4, help="images for each prompt (default: 4)")
    parser.add_argument("--batch-size", type=integer(1), default=16, help="images drawn at once (default: 16)")
    parser.add_argument("--seed", type=integer(0), default=0, help="another seed, other images (default: 0)")
    parser.add_argument(
        "--guidance",
        type=number(0),
        default=3.0,
        help="classifier-free guidance; 1 is none, larger follows the prompt more closely (default: 3)",
    )
    parser.add_argument(
        "--temperature", type=number(0), default=1.0, help="0 takes the likeliest codes (default: 1)"
    )
    parser.add_argument("--top-k", type=integer(0), default=0, help="draw from the k likeliest codes; 0: all (default)")
    parser.add_argument(
        "--top-p", type=number(0, 1), default=1.0, help="draw from the likeliest codes of this probability (default: 1)"
    )
    add_model_argument(parser)
    add_device_argument(parser)


@dataclass(frozen=True)
class Settings:
    """What besides the prompt decides how an image looks, and the batch size."""

    num_images: int
    seed: int
    guidance_scale: float
    temperature: float
    top_k: int
    top_p: float
    batch_size: int


def run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    prompts = read_prompts(args)
    settings = Settings(
        args.num_images, args.seed, args.guidance, args.temperature, args.top_k, args.top_p, args.batch_size
    )
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {args.output} is a file; name a folder")
    device = resolve_device(args.device)
    pipeline = load_pipeline(args.model, device)

    with staging_folder(output) as folder:
        entries, rows = [], []
        with tqdm(total=len(prompts) * settings.num_images, unit="image", disable=None) as progress:
            for prompt_index, prompt in enumerate(prompts):
                images = draw(pipeline, prompt, settings)
                for index, image in enumerate(images):
                    file = f"{prompt_index:04}_{index:02}.png"
                    image.save(folder / file)
                    entries.append({"file": file, "prompt": prompt, "seed": settings.seed, "index": index})
                if len(rows) < GRID_ROWS:
                    rows.append((prompt, [thumbnail(image) for image in images]))
                progress.update(len(images))
        contact_sheet(rows).save(folder / GRID_NAME)
        description = {
            "model": args.model,
            "device": device,
            "settings": asdict(settings),
            "versions": versions(),
            "images": entries,
        }
        (folder / JSON_NAME).write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        publish(folder, output)
    print(f"{len(entries)} images of {len(prompts)} prompts in {output}, all on {output / GRID_NAME}")
    return 0


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts of `--prompt` or of the file's lines that are not blank. UserError if there are none."""
    if args.prompts_file is None:
        return [text_argument(prompt, "--prompt") for prompt in args.prompt]
    try:
        text = Path(args.prompts_file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"--prompts-file {args.prompts_file} is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"--prompts-file {args.prompts_file} cannot be read: {error.strerror}") from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"--prompts-file {args.prompts_file} holds no prompt; write one on each line")
    return prompts


def draw(pipeline: "DualTokenPipeline", prompt: str, settings: Settings) -> list[Image.Image]:
    """The images of one prompt."""
    return pipeline.generate_images(
        prompt,
        num_images=settings.num_images,
        guidance_scale=settings.guidance_scale,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
        batch_size=settings.batch_size,
    )


def thumbnail(image: Image.Image) -> Image.Image:
    """The image at the size of a grid cell: enlarged by a whole factor, or reduced."""
    factor = GRID_CELL // max(image.size)
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    reduced = image.copy()
    reduced.thumbnail((GRID_CELL, GRID_CELL))
    return reduced


def contact_sheet(rows: list[tuple[str, list[Image.Image]]], gap: int = 8, line: int = 20) -> Image.Image:
    """One row for each prompt, its text above its images."""
    font = ImageFont.load_default(size=14)
    columns = max(len(images) for _, images in rows)
    width = gap + columns * (GRID_CELL + gap)
    height = gap + len(rows) * (line + GRID_CELL + gap)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (prompt, images) in enumerate(rows):
        top = gap + row * (line + GRID_CELL + gap)
        pen.text((gap, top), shortened(prompt, width - 2 * gap, font), fill="black", font=font)
        for column, image in enumerate(images):
            sheet.paste(image, (gap + column * (GRID_CELL + gap), top + line))
    return sheet


def shortened(text: str, width: int, font: Any) -> str:
    """The text, or as much of its beginning as fits into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def versions() -> dict[str, str]:
    import torch
    import transformers

    return {
        "dualtoken": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


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
    for name in files_of(output) - new:
        (output / name).unlink(missing_ok=True)
    for name in sorted(new, key=lambda name: name == JSON_NAME):  # the description comes last
        os.replace(folder / name, output / name)


def files_of(output: Path) -> set[str]:
    """The images that an earlier call wrote into this folder, by its own description."""
    try:
        entries = json.loads((output / JSON_NAME).read_text(encoding="utf-8"))["images"]
        return {entry["file"] for entry in entries if IMAGE_NAME.fullmatch(entry["file"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["sample", *sys.argv[1:]]))
