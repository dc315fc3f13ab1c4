"""Show what pixel codes keep of an image: before and after side by side, with the PSNR.

"Before" is the image as the model sees it, resized to the model's own square size. Small images are enlarged
by a whole factor, each pixel a block, so that the picture holds exactly the values that were compared.

Example:
  dualtoken reconstruct photo.jpg --output before-after.png
  dualtoken reconstruct --model nano photo.jpg --output before-after.png --codes codes.npz
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..common.errors import UserError
from .options import add_device_argument, add_model_argument, load_pipeline, png_path, resolve_device

if TYPE_CHECKING:
    from torch import Tensor

    from ..tokenizer import VisualCodes

LEAST_HEIGHT = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="FILE", help="the image")
    parser.add_argument(
        "--output", required=True, help="the PNG to write: before on the left, after on the right"
    )
    parser.add_argument(
        "--codes", help="also write the codes, as an .npz with pixel and semantic (rows, columns, depth)"
    )
    add_model_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from ..common.files import atomic_file
    from ..tokenizer.processing import load_image

    output = png_path(args.output, "--output")
    codes_path = npz_path(args.codes) if args.codes is not None else None
    source = load_image(args.image)
    pipeline = load_pipeline(args.model, resolve_device(args.device))

    tokenizer, processor = pipeline.model.require_visual_tokenizer(), pipeline.processor.image_processor
    with torch.inference_mode():
        pixel_values = processor(source)["pixel_values"].to(tokenizer.device, tokenizer.dtype)
        codes = tokenizer.encode(pixel_values)
        decoded = tokenizer.decode(codes.pixel)
    before, after = processor.to_images(pixel_values)[0], processor.to_images(decoded)[0]

    with atomic_file(output) as temporary:
        side_by_side(before, after).save(temporary)
    if codes_path is not None:
        with atomic_file(codes_path) as temporary:
            write_codes(codes, temporary)
    print(f"PSNR {psnr(before, after):.2f} dB")
    return 0


def psnr(before: Image.Image, after: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit images of one size, over all pixels and channels, in dB."""
    difference = np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64)
    error = float(np.mean(difference**2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """Both images in one, without a gap, enlarged by a whole factor to LEAST_HEIGHT or more."""
    factor = max(1, -(-LEAST_HEIGHT // before.height))
    width, height = before.width * factor, before.height * factor
    picture = Image.new("RGB", (2 * width, height))
    for column, image in enumerate((before, after)):
        picture.paste(image.resize((width, height), Image.Resampling.NEAREST), (column * width, 0))
    return picture


def write_codes(codes: "VisualCodes", path: Path) -> None:
    """The first image's codes as `pixel` and `semantic`, (rows, columns, depth), in 16 bits if they fit."""
    with path.open("wb") as file:
        np.savez_compressed(file, pixel=first_image(codes.pixel), semantic=first_image(codes.semantic))


def first_image(codes: "Tensor") -> np.ndarray:
    """(B, rows, columns, depth) int64 -> (rows, columns, depth) uint16, or int64 for larger codebooks."""
    array = codes[0].cpu().numpy()
    return array.astype(np.uint16) if array.max() <= np.iinfo(np.uint16).max else array


def npz_path(value: str) -> Path:
    path = Path(value)
    if path.suffix.lower() != ".npz":
        raise UserError(f"--codes {value}: the name must end in .npz")
    if path.is_dir():
        raise UserError(f"--codes {value} is a folder; name a file")
    return path


if __name__ == "__main__":
    from .cli import main

    sys.exit(main(["reconstruct", *sys.argv[1:]]))
