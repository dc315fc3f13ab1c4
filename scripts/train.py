"""``dualtoken train RECIPE.yaml``: one process by hand, several under ``deepspeed`` or ``torchrun``."""

from __future__ import annotations

import argparse
import sys

EPILOG = """\
examples:
  dualtoken train train/recipes/nano_mllm.yaml --output runs/mllm
  torchrun --nproc_per_node 2 -m dualtoken.scripts.train train/recipes/nano_mllm.yaml --run.zero_stage 2
  deepspeed --module dualtoken.scripts.train train/recipes/nano_mllm.yaml

Every key of a recipe can be overridden: --run.steps 200 --optimizer.lr 1e-3. All keys: dualtoken train
--recipe-help. A run that was stopped goes on from its newest checkpoint when it is started again with the
same output.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "recipe", nargs=argparse.REMAINDER, help="the recipe YAML, then overrides (--section.key value)"
    )


def run(args: argparse.Namespace) -> int:
    from ..train.config import parse_recipe
    from ..train.trainer import train

    # The deepspeed launcher appends its rank as an argument of its own; the environment says the same.
    arguments = [word for word in args.recipe if not word.startswith("--local_rank")]
    recipe = parse_recipe(["--help" if word == "--recipe-help" else word for word in arguments])
    folder = train(recipe)
    print(
        f"model: {folder}"
        if folder
        else f"stopped after step {recipe.run.stop_after}; start it again to go on"
    )
    return 0


if __name__ == "__main__":
    from .cli import run_command

    sys.exit(run_command("train", sys.argv[1:]))
