"""Replace the images of shards by their codes, once, so that training need not run the tokenizer.

The manifest names the tokenizer, and training with another one is refused. Under torchrun every process
takes complete shards, on its own GPU. A killed run leaves OUTPUT.partial; the same command resumes there and
writes the same bytes.

Examples:
  dualtoken tokenize --tokenizer runs/tokenizer/model --input data/scenes-vqa --output data/scenes-vqa-codes
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--tokenizer",
        type=options.path,
        required=True,
        help="folder of a tokenizer, or of a model that contains one; a tokenizer's hub id, or nano",
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
    add(
        "--encode-precision",
        choices=("fp32", "tf32", "bf16"),
        help="arithmetic of the encoder; tf32 and bf16 are faster on GPUs and change codes (default: what "
        "the tokenizer's config.json names, else fp32)",
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
    from .evaluate_tokenizer import saved_part

    source, share = tokenizer_source(args.tokenizer), Share.from_environment()
    reads = {"--tokenizer": next((one for one in (args.tokenizer, Path(source)) if one.is_dir()), None)}
    if share.is_main:  # before the model, which takes a while to load
        inputs = {"--input": None if is_url(args.input) else user_path(args.input), **reads}
        check_output(args.output, inputs, args.overwrite, makers=SHARD_MAKERS)
    device = options.resolve_device(args.device)
    if device == "cuda":
        import torch

        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    processor = saved_part(DualTokenizerImageProcessor.from_pretrained, source, "preprocessor_config.json")
    precision = {} if args.encode_precision is None else {"encode_precision": args.encode_precision}
    manifest = tokenize_shards(
        DualTokenizer.from_pretrained(source, **precision),
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
        reads=reads,
        decoders=args.decoders,
    )
    if manifest is None:  # the main process reports for all
        return 0
    counts = manifest["counts"]
    if not counts["records"]:
        raise UserError(
            f"no record of {args.input} could be used; {args.output}/manifest.json names the reasons"
        )
    made = f"{options.counted(counts['records'], 'record')}, {options.counted(counts['images'], 'image')}"
    print(f"{made} as codes in {args.output}")
    if counts["rejected"]:
        print(
            f"{options.counted(counts['rejected'], 'record')} rejected; the manifest names them",
            file=sys.stderr,
        )
    return 0


def tokenizer_source(path: Path) -> str:
    """The folder or hub id of a tokenizer: of `path` itself, or inside a model's folder."""
    from ..common.loading import strict

    try:
        folder = Path(strict.tokenizer_source(str(path)))
    except UserError as error:
        raise UserError(f"--tokenizer: {error}") from error
    if not folder.is_dir():
        return str(path)  # a hub id
    if (folder / strict.TOKENIZER_FOLDER).is_dir():
        folder /= strict.TOKENIZER_FOLDER
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--tokenizer {path} is not a folder with a config.json: give a saved tokenizer or model, or nano"
        )
    return str(folder)


if __name__ == "__main__":
    cli.run_main(__spec__)
