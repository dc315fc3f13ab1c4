"""Train a tokenizer or a model by a recipe, in one process or in several under deepspeed or torchrun.

Every key of a recipe can be overridden, and later recipes override earlier ones; --recipe-help describes the
keys. A stopped run resumes from its newest checkpoint when it is started again with the same output.
SIGTERM and SIGINT (Ctrl-C) end a run after a step and a checkpoint, with status 143 and 130; a second signal
ends it at once.

Examples:
  dualtoken train train/recipes/nano_mllm.yaml --output runs/mllm --run.steps 200 --optimizer.lr 1e-3
  torchrun --nproc_per_node 2 -m dualtoken.scripts.train train/recipes/nano_mllm.yaml --run.zero_stage 2
  deepspeed --module dualtoken.scripts.train train/recipes/nano_mllm.yaml
  dualtoken train --config base.yaml --config sizes/7b.yaml --init_from runs/pretrain/model
  dualtoken train --estimate train/recipes/pretrain_qwen2.5_7b.yaml     # the memory it will take
"""

from __future__ import annotations

import argparse
import os
import sys

from ..common.errors import UserError
from . import cli

CHANGES = "--resume-with-changes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--recipe-help", action="store_true", help="describe every key of a recipe, and exit")
    add("--estimate", action="store_true", help="print the memory that the recipe will take, and exit")
    add(
        CHANGES,
        action="append",
        metavar="KEY[,KEY...]",
        help="resume although these keys changed that should stay (keys, sections, or shell patterns)",
    )
    # The deepspeed launcher passes it first; the environment holds it too.
    add("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    add("recipe", nargs="?", help="the recipe: a YAML file, or the name of a shipped one")
    add("overrides", nargs=argparse.REMAINDER, help="--section.key value …")
    add(
        "--config",
        nargs=argparse.REMAINDER,
        metavar="RECIPE",
        help="a recipe that overrides those before it (instead of the first argument, or after it)",
    )


def run(args: argparse.Namespace) -> int:
    from ..train.config.reading import parse_recipe

    if args.recipe_help:
        parse_recipe(["--help"])
    # After the recipe argparse leaves all to the overrides.
    given = [args.recipe, *args.overrides] if args.recipe else []
    given += ["--config", *args.config] if args.config else []
    if not given:
        raise UserError("no recipe given; name a YAML file, such as those in train/recipes")
    words, changes = _parted(given)
    estimate = args.estimate or "--estimate" in words
    recipe = parse_recipe([word for word in words if word != "--estimate"])
    if estimate:
        from ..train.planning.estimate import Estimate

        print(Estimate.of(recipe).table())
        return 0
    from ..train.callbacks.stop_request import RunStopped
    from ..train.trainer import train

    try:
        named = ",".join([*(args.resume_with_changes or []), *changes]).split(",")
        folder = train(recipe, [key.strip() for key in named if key.strip()])
    except RunStopped as stopped:
        print(f"{stopped}, with a checkpoint; start it again to resume", file=sys.stderr)
        return 128 + stopped.signum
    stopped_after = f"stopped after step {recipe.run.stop_after}; start it again to resume"
    if os.environ.get("RANK", "0") == "0":  # one process prints for all
        print(f"model: {folder}" if folder else stopped_after)
    return 0


def _parted(words: list[str]) -> tuple[list[str], list[str]]:
    """The words without --resume-with-changes, which may also follow the recipe, and its values."""
    rest: list[str] = []
    values: list[str] = []
    remaining = iter(words)
    for word in remaining:
        option, joined, value = word.partition("=")
        if option != CHANGES:
            rest.append(word)
        elif value := value if joined else next(remaining, ""):
            values.append(value)
        else:
            raise UserError(f"{CHANGES} needs keys of the recipe, such as data.sources.chat.weight")
    return rest, values


if __name__ == "__main__":
    cli.run_main(__spec__)
