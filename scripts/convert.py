"""Turn a checkpoint of another layout into a folder that `from_pretrained` loads.

`official` reads the tokenizers released with the paper: a .pt or .safetensors file and its config.json. The
folder gets the weights as safetensors, the configuration, the image processor and, where the backbone's
folder has one, the text tokenizer. `checkpoint` reads a checkpoint of `dualtoken train`, of any ZeRO stage,
without a GPU or the data, and gives the model that the run exports at its end. Nothing in a file is executed.

Examples:
  dualtoken convert official epoch_20.pt --config config.json --output so400m-384-rvq8
  dualtoken convert checkpoint runs/mllm --step 4000 --output mllm-4000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.outputs import check_output, mark_output
from ..common.paths import user_path
from . import cli, options
from .options import integer

_COMMAND = "dualtoken convert"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    official = kinds.add_parser("official", help="a tokenizer released with the paper")
    official.add_argument("checkpoint", type=options.path, help="the .pt or .safetensors file")
    official.add_argument("--config", type=options.path, required=True, help="its config.json")
    official.add_argument(
        "--backbone",
        help="folder or hub id of the SigLIP whose configuration (and text tokenizer) belongs to it "
        "(default: the one that the config names, next to it or on the hub)",
    )
    official.add_argument(
        "--not-causal",
        action="store_true",
        help="the projections after the quantizers attend to all positions (the released models' do not)",
    )
    trained = kinds.add_parser("checkpoint", help="a checkpoint of dualtoken train")
    trained.add_argument(
        "checkpoint", type=options.path, help="output folder of a run, or one of its checkpoints"
    )
    trained.add_argument(
        "--step", type=step, help="which checkpoint of a run: a step, or best (default: the newest)"
    )
    trained.add_argument(
        "--average", action="store_true", help="the averaged weights (run.weight_average), not the last ones"
    )
    trained.add_argument(
        "--dtype", choices=("fp32", "bf16"), help="of the weights (default: the recipe's run.export_dtype)"
    )
    for kind in (official, trained):
        kind.add_argument("--output", type=options.path, required=True, help="folder to make")
        kind.add_argument("--overwrite", action="store_true", help="replace what an earlier convert made")


def step(text: str) -> int | str:
    """An argparse type: the number of a step, or "best"."""
    return "best" if text == "best" else integer(1)(text)


def run(args: argparse.Namespace) -> int:
    """Convert and print the result. UserError for files that do not fit, before anything is written."""
    inputs: dict[str, Path | None] = {"the checkpoint": args.checkpoint}
    if args.kind == "official":
        backbone = None if args.backbone is None else user_path(args.backbone)
        if backbone is not None and backbone.exists():
            args.backbone = str(backbone)
        inputs |= {"--config": args.config, "--backbone": backbone}
    check_output(args.output, inputs, args.overwrite, makers=[_COMMAND])
    options.quiet_transformers()
    (convert_official if args.kind == "official" else convert_checkpoint)(args)
    mark_output(args.output, _COMMAND)
    return 0


def convert_checkpoint(args: argparse.Namespace) -> None:
    """Convert a checkpoint of a training run."""
    from ..train.backend.export import export_checkpoint, find_checkpoint, recipe_of
    from ..train.run_folder import CHECKPOINTS

    checkpoint = find_checkpoint(args.checkpoint, args.step)
    run = checkpoint.resolve().parent.parent
    if checkpoint.parent.name == CHECKPOINTS and args.output.resolve().is_relative_to(run):
        raise UserError(f"--output {args.output} lies in the run {run} itself; give a folder outside it")
    export_checkpoint(checkpoint, recipe_of(checkpoint), args.output, args.dtype, args.average)
    print(f"{args.output}: the model of {checkpoint}" + (", averaged" if args.average else ""))


def convert_official(args: argparse.Namespace) -> None:
    """Convert a released tokenizer."""
    from ..common.files import atomic_folder
    from ..tokenizer import DualTokenizer, DualTokenizerImageProcessor
    from ..tokenizer.official import find_backbone

    tokenizer = DualTokenizer.from_official(args.checkpoint, args.config, args.backbone, not args.not_causal)
    config = tokenizer.config
    with atomic_folder(args.output) as partial:
        tokenizer.save_pretrained(partial)
        DualTokenizerImageProcessor.for_config(config).save_pretrained(partial)
        has_text = save_text_tokenizer(args.backbone or find_backbone(args.config), partial)
    codes = " and ".join(f"{one.depth} of {one.num_codes}" for one in config.quantizers.values())
    rows, columns = config.grid_size
    print(f"{args.output}: {config.image_size} px, {rows} x {columns} positions, {codes} codes each")
    if not has_text:
        print("the backbone's folder has no text tokenizer: zero-shot use needs one", file=sys.stderr)


def save_text_tokenizer(backbone: str, folder: Path) -> bool:
    """Copy the backbone's text tokenizer into `folder`, if it has one."""
    from transformers import AutoTokenizer

    try:
        text_tokenizer: Any = AutoTokenizer.from_pretrained(backbone, trust_remote_code=False)
    except Exception:  # no tokenizer in the folder, no network, or a damaged file
        return False
    text_tokenizer.save_pretrained(folder)
    return True


if __name__ == "__main__":
    cli.run_main(__spec__)
