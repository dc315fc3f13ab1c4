"""Turn a checkpoint of another layout into a folder that `from_pretrained` loads.

`official` reads the tokenizers released with the paper: a .pt or .safetensors file and its config.json.
Nothing in a .pt file is executed. The folder gets the weights as safetensors, the configuration, the image
processor and, where the backbone's folder has one, the text tokenizer.

Example:
  dualtoken convert official epoch_20.pt --config config.json --output so400m-384-rvq8
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..tokenizer.errors import UserError

KINDS = ("official",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command to `parser`."""
    parser.add_argument("kind", choices=KINDS, help="what the checkpoint is")
    parser.add_argument("checkpoint", type=Path, help="the .pt or .safetensors file")
    parser.add_argument("--config", type=Path, required=True, help="its config.json")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--backbone",
        help="folder or hub id of the SigLIP whose configuration (and text tokenizer) belongs to it "
        "(default: what the config names, beside it or on the hub)",
    )
    parser.add_argument(
        "--not-causal",
        action="store_true",
        help="the projections behind the quantizers see all positions (the released models' do not)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")


def run(args: argparse.Namespace) -> int:
    """Convert and print what came out. UserError for files that do not fit, before anything is written."""
    if args.output.exists() and not args.overwrite:
        raise UserError(f"--output {args.output} exists; choose another name or give --overwrite")
    import transformers

    from ..tokenizer import DualTokenizer, DualTokenizerImageProcessor
    from ..tokenizer.files import atomic_folder
    from ..tokenizer.official import find_backbone

    transformers.logging.set_verbosity_error()  # its remarks are about choices that are not the user's
    tokenizer = DualTokenizer.from_official(args.checkpoint, args.config, args.backbone, not args.not_causal)
    config = tokenizer.config
    with atomic_folder(args.output) as partial:
        tokenizer.save_pretrained(partial)
        DualTokenizerImageProcessor(size=config.image_size).save_pretrained(partial)
        has_text = save_text_tokenizer(args.backbone or find_backbone(args.config), partial)
    quantizers = [config.pixel_quantizer, config.semantic_quantizer]
    codes = " and ".join(f"{q['depth']} of {q['num_codes']}" for q in quantizers)
    rows, columns = config.grid_size
    print(f"{args.output}: {config.image_size} px, {rows} x {columns} positions, {codes} codes each")
    if not has_text:
        print("no text tokenizer was found beside the backbone: zero-shot use needs one", file=sys.stderr)
    return 0


def save_text_tokenizer(backbone: str, folder: Path) -> bool:
    """Copy the backbone's text tokenizer into `folder`, if it has one."""
    from transformers import AutoTokenizer

    try:
        text_tokenizer: Any = AutoTokenizer.from_pretrained(backbone)
    except (OSError, ValueError, KeyError):  # a folder with a configuration only; no network
        return False
    text_tokenizer.save_pretrained(folder)
    return True


if __name__ == "__main__":
    from .cli import run_command

    sys.exit(run_command("convert", sys.argv[1:]))
