"""Reconstruct images from their pixel codes: before and after side by side, with the PSNR.

"Before" is the image resized to the model's square input. Small images are enlarged by an integer factor
without interpolation, so that the PNG holds exactly the values that were compared.

Several images, or folders of them, may be given. With an output that ends in .png all of them are written to
one image, one below the other; any other output is a folder with an image for each. Images that cannot be
read are named and skipped. Only files that this command made are replaced.

Example:
  dualtoken reconstruct photo.jpg --output before-after.png
  dualtoken reconstruct --model nano photo.jpg --output before-after.png --codes codes.npz
  dualtoken reconstruct photos more/*.jpg --output reconstructed
"""

import argparse
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..common.errors import UserError
from ..common.files import atomic_file
from ..common.images.reading import is_image_name, load_image
from ..common.output_files import check_file, check_files, is_our_image, staged_files, write_image
from ..common.paths import walk_files
from ..common.values import whole_number
from . import cli, options

if TYPE_CHECKING:
    from torch import Tensor

    from ..mllm import DualTokenPipeline

LEAST_HEIGHT = 256
MOST_IMAGES = 10_000
MOST_ON_A_SHEET = 64


@dataclass(frozen=True)
class Reconstruction:
    """An image before and after, and its codes (rows, columns, depth) as `pixel` and `semantic`."""

    before: Image.Image
    after: Image.Image
    codes: dict[str, np.ndarray]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="+", type=options.path, metavar="FILE", help="images, and folders")
    add(
        "--output",
        required=True,
        type=options.path,
        help="the PNG to write, before on the left, after on the right; or a folder for one image each",
    )
    add(
        "--codes",
        type=options.path,
        help="also write the codes, as an .npz with pixel and semantic (rows, columns, depth); of several "
        "images into this folder",
    )
    options.add_shared(parser, "--model", "--device")


def run(args: argparse.Namespace) -> int:
    files = image_files(args.images)
    several = len(files) > 1
    sheet = options.png_path(args.output, "--output") if is_image_name(args.output.name) else None
    check_outputs(args, files, sheet)
    if not several:
        load_image(files[0])  # a broken one fails before the model loads
    pipeline = options.load_pipeline(args.model, options.resolve_device(args.device))
    rows: list[Image.Image] = []
    ratios: list[float] = []
    with ExitStack() as stack:
        folder = None if sheet else stack.enter_context(staged_files(args.output, "reconstruct"))
        codes = (
            stack.enter_context(staged_files(args.codes, "reconstruct")) if several and args.codes else None
        )
        for number, file, image in opened(files):
            one = reconstruct(pipeline, image)
            ratios.append(psnr(one.before, one.after))
            pair = side_by_side(one.before, one.after)
            if folder is None:
                rows.append(pair)
            else:
                pair.save(folder / output_name(number, file, ".png"))
            if codes is not None:
                write_codes(one.codes, codes / output_name(number, file, ".npz"))
            elif args.codes is not None:
                with atomic_file(args.codes) as temporary:
                    write_codes(one.codes, temporary)
            print(f"PSNR {ratios[-1]:.2f} dB" + (f"  {file}" if several else ""))
        if not ratios:
            raise UserError(f"none of the {len(files)} images can be read")
        if sheet is not None:
            write_image(below_each_other(rows), sheet)
    if several:
        print(f"PSNR {np.mean(ratios):.2f} dB on average of {len(ratios)} images, in {args.output}")
    return 0


def image_files(given: list[Path]) -> list[Path]:
    """The given files, and the images in given folders, each once. UserError if there are none."""
    files: dict[Path, None] = {}
    for path in given:
        if path.is_dir():
            found = [file for file in walk_files(path) if is_image_name(file.name)]
            if not found:
                raise UserError(f"the folder {path} holds no image")
            files.update(dict.fromkeys(found))
        else:
            files[path] = None
    whole_number(len(files), "the number of images", 1, MOST_IMAGES)
    return list(files)


def check_outputs(args: argparse.Namespace, files: list[Path], sheet: Path | None) -> None:
    """UserError for outputs that would replace an input or another program's file."""
    inputs = {"an image to reconstruct": files}
    if sheet is not None:
        whole_number(len(files), "the number of images on one PNG (give a folder)", 1, MOST_ON_A_SHEET)
        check_file(sheet, inputs, is_our_image)
    else:
        if any(path.is_dir() and args.output.resolve() == path.resolve() for path in args.images):
            raise UserError(f"--output {args.output} is also the folder of the images: give another one")
        check_files(args.output, [output_name(n, file, ".png") for n, file in enumerate(files)])
    if args.codes is None:
        return
    if len(files) == 1:
        options.file_path(args.codes, "--codes", ".npz", "codes are written by numpy")
        check_file(args.codes, inputs, is_our_codes, "--codes")
    elif args.codes.suffix.lower() == ".npz":
        raise UserError(f"--codes {args.codes}: the codes of {len(files)} images go into a folder; name one")
    else:
        check_files(args.codes, [output_name(n, file, ".npz") for n, file in enumerate(files)], "--codes")


def output_name(number: int, file: Path, suffix: str) -> str:
    """A unique file name for an image."""
    return f"{number:04}_{file.stem[:48]}{suffix}"


def opened(files: list[Path]) -> Iterator[tuple[int, Path, Image.Image]]:
    """(number, file, image); an image that cannot be read is named and skipped."""
    for number, file in enumerate(files):
        try:
            image = load_image(file)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        yield number, file, image


def reconstruct(pipeline: "DualTokenPipeline", source: Image.Image) -> Reconstruction:
    """The image as resized for the model, and decoded from its pixel codes."""
    model, processor = pipeline.model, pipeline.processor.image_processor
    pixel_values = processor(source)["pixel_values"]
    codes = model.encode_images(pixel_values)
    decoded = model.decode_pixel_codes(codes.pixel)
    before, after = processor.to_images(pixel_values)[0], processor.to_images(decoded)[0]
    grid = model.config.grid_size
    return Reconstruction(
        before, after, {"pixel": on_grid(codes.pixel, grid), "semantic": on_grid(codes.semantic, grid)}
    )


def psnr(before: Image.Image, after: Image.Image) -> float:
    """Peak signal-to-noise ratio of two 8-bit images of one size, over all pixels and channels, in dB."""
    difference = np.asarray(before, dtype=np.float64) - np.asarray(after, dtype=np.float64)
    error = float(np.mean(difference**2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def side_by_side(before: Image.Image, after: Image.Image) -> Image.Image:
    """Both images in one, without a gap, enlarged by an integer factor to LEAST_HEIGHT or more."""
    factor = max(1, -(-LEAST_HEIGHT // before.height))
    width, height = before.width * factor, before.height * factor
    pair = Image.new("RGB", (2 * width, height))
    for column, image in enumerate((before, after)):
        pair.paste(image.resize((width, height), Image.Resampling.NEAREST), (column * width, 0))
    return pair


def below_each_other(rows: list[Image.Image]) -> Image.Image:
    """Images of one size in one, without a gap."""
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)))
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * row.height))
    return sheet


def write_codes(codes: dict[str, np.ndarray], path: Path) -> None:
    """Write codes as an .npz under exactly this name; numpy would append .npz."""
    with path.open("wb") as file:
        np.savez_compressed(file, pixel=codes["pixel"], semantic=codes["semantic"])


def is_our_codes(path: Path) -> bool:
    """Whether `write_codes` made this file, by the names in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(archive.namelist()) == ["pixel.npy", "semantic.npy"]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


def on_grid(codes: "Tensor", grid_size: Sequence[int]) -> np.ndarray:
    """Codes (1, P, D) int64 as (rows, columns, D) uint16, or int64 for larger codebooks."""
    array = codes[0].unflatten(0, tuple(grid_size)).cpu().numpy()
    return array.astype(np.uint16) if array.max() <= np.iinfo(np.uint16).max else array


if __name__ == "__main__":
    cli.run_main(__spec__)
