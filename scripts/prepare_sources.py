"""`dualtoken prepare sources`: the data sets of the small model from their public repositories."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..common.errors import UserError, shown
from ..common.paths import user_path
from ..data_pipelines.small_sets.public_sets import SETS
from ..data_pipelines.small_sets.source_sets import SOURCES, SourceOptions, chosen_sets, make_sets
from . import options


def add_kinds(add_kind: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Add `sources`; `add_kind` makes a parser from name, summary and example."""
    parser = add_kind(
        "sources",
        "fetch the small model's data sets from their public git repositories, as zips",
        """dualtoken prepare sources --output data
  dualtoken prepare sources --output data --only emoji,nlvr
  dualtoken prepare sources --output data --only nlvr --clone nlvr=clones/nlvr""",
    )
    parser.set_defaults(run_kind=run)
    add = parser.add_argument
    repositories = ", ".join(dict.fromkeys(source.name for one in SETS.values() for source in one.sources))
    add("--output", type=options.path, required=True, help=f"folder for the zips and {SOURCES}")
    add("--only", metavar="SETS", help=f"some of {','.join(SETS)} (default: all)")
    add(
        "--clone",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=PATH",
        help=f"read a local clone instead of downloading; names: {repositories}",
    )
    add(
        "--revision",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=COMMIT",
        help="take a repository at this commit or branch instead of the newest",
    )
    add("--overwrite", action="store_true", help="replace existing zips")
    options.add_shared(parser, "--no-progress")


def run(args: argparse.Namespace) -> int:
    """Make the missing zips and print the number of images in each."""
    clones = {name: user_path(clone) for name, clone in _named(args.clone, "--clone", "PATH").items()}
    options = SourceOptions(
        args.output,
        clones,
        _named(args.revision, "--revision", "COMMIT"),
        overwrite=args.overwrite,
        progress=not args.no_progress,
    )
    names = None if args.only is None else [name.strip() for name in args.only.split(",") if name.strip()]
    for one, count, made in make_sets(chosen_sets(names), options):
        known = "" if count == one.images else f"; nano was trained on {one.images:,}"
        there = "" if made else " (was there)"
        print(f"{one.name}: {count:,} images in {args.output / one.file}{there}{known}", flush=True)
    return 0


def _named(words: list[str], option: str, what: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name or not value:
            example = f"{option} nlvr={what.lower()}"
            raise UserError(f"{option} {shown(word)}: expected NAME={what}, e.g. {example}.")
        pairs[name] = value
    return pairs
