"""Replace the images of shards by their codes, once, so that training need not run the tokenizer.

The manifest names the tokenizer, and training with another one is refused. Under torchrun every process
takes complete shards, on its own GPU. A killed run leaves OUTPUT.partial; the same command resumes there and
writes the same bytes.

Examples:
  dualtoken tokenize --tokenizer runs/tokenizer/export --input data/scenes-vqa --output data/scenes-vqa-codes
  torchrun --nproc_per_node 8 -m dualtoken.scripts.tokenize --tokenizer tok --input data/photos --output codes
  dualtoken tokenize --tokenizer tok --input data/photos --output data/codes --crops 2 --flips
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..common.errors import UserError
from ..common.outputs import SHARD_MAKERS, check_output
from ..common.paths import user_path
from . import cli, options
from .options import integer, number

VISUAL_TOKENIZER = "visual_tokenizer"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--tokenizer",
        type=options.path,
        required=True,
        help="folder of a tokenizer, or of a model that contains one",
    )
    add("--input", required=True, help="folder of shards with images, or its URL")
    add("--output", type=options.path, required=True, help="folder of shards with codes to make")
    add("--batch-size", type=integer(1, 65_536), default=64, help="images at a time (default %(default)s)")
    add("--shard-size", type=integer(1), default=50_000, help="most records per shard (default %(default)s)")
    add(
        "--decoders",
        type=integer(1, 1024),
        default=4,
        help="threads that decode images (default %(default)s)",
    )
    add(
        "--crops",
        type=integer(0, 1000),
        default=0,
        help="random crops to add per record (default %(default)s)",
    )
    add("--crop-scale", type=number(0.01, 1), default=0.5, help="least area of a crop (default %(default)s)")
    add(
        "--flips",
        action="store_true",
        help="add mirror images; only for records in which left and right do not matter",
    )
    add("--seed", type=options.seed, default=0, help="of the crops (default %(default)s)")
    add(
        "--overwrite",
        action="store_true",
        help="replace an existing folder, and unfinished work of another kind",
    )
    options.add_shared(parser, "--no-progress")
    options.add_shared(parser, "--device")


def run(args: argparse.Namespace) -> int:
    """Tokenize the shards. UserError for a mistake in the arguments."""
    from ..data_pipelines.codes.code_cache import tokenize_shards
    from ..data_pipelines.codes.views import ViewOptions
    from ..data_pipelines.job import Share
    from ..data_pipelines.shards.storage import is_url
    from ..tokenizer import DualTokenizer, DualTokenizerImageProcessor

    folder, share = tokenizer_folder(args.tokenizer), Share.from_environment()
    if share.is_main:  # before the model, which takes a while to load
        source = None if is_url(args.input) else user_path(args.input)
        inputs = {"--input": source, "--tokenizer": args.tokenizer}
        check_output(args.output, inputs, args.overwrite, makers=SHARD_MAKERS)
    device = options.resolve_device(args.device)
    if device == "cuda":
        import torch

        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    processor = None
    if (folder / "preprocessor_config.json").is_file():
        processor = DualTokenizerImageProcessor.from_pretrained(folder)
    manifest = tokenize_shards(
        DualTokenizer.from_pretrained(folder),
        args.input,
        args.output,
        batch_size=args.batch_size,
        device=device,
        image_processor=processor,
        shard_size=args.shard_size,
        overwrite=args.overwrite,
        progress=not args.no_progress,
        views=ViewOptions(args.crops, args.crop_scale, args.flips, args.seed),
        share=share,
        reads={"--tokenizer": args.tokenizer},
        decoders=args.decoders,
    )
    if manifest is None:  # the main process reports for all
        return 0
    counts = manifest["counts"]
    if not counts["records"]:
        raise UserError(
            f"no record of {args.input} could be used; {args.output}/manifest.json names the reasons"
        )
    print(f"{counts['records']} records, {counts['images']} images as codes in {args.output}")
    if counts["rejected"]:
        print(f"{counts['rejected']} records rejected; the manifest names them", file=sys.stderr)
    return 0


def tokenizer_folder(path: Path) -> Path:
    """`path` itself, or the tokenizer inside a model's folder."""
    folder = path / VISUAL_TOKENIZER if (path / VISUAL_TOKENIZER).is_dir() else path
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--tokenizer {path} is not a folder with a config.json: give a saved tokenizer or model"
        )
    return folder


if __name__ == "__main__":
    cli.run_main(__spec__)
