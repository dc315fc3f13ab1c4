"""Make shards for training and evaluation from procedural scenes or from data sets; check and count them.

For the options of a kind see ``dualtoken prepare llava --help``. A stopped run resumes when the same command
is given again. A sample that cannot be used is skipped, counted and named.

Examples:
  dualtoken prepare folder --input photos --output data/photos --task all
  dualtoken prepare llava --input llava.json --image-folder images --output data/llava --workers 8
  dualtoken prepare webdataset --input 'laion/{00000..00099}.tar' --output data/laion --task t2i
  dualtoken prepare hf --input HuggingFaceM4/the_cauldron --config vqav2 --output data/vqav2
  dualtoken prepare text --input books --output data/books
  dualtoken prepare obelics --input obelics.parquet --image-folder images --output data/obelics
  dualtoken prepare scenes --output data/scenes-vqa --count 20000 --task vqa
  dualtoken prepare sources --output data
  dualtoken prepare check data/llava
  dualtoken prepare stats data/llava --sheet llava.png
  dualtoken prepare --include-path my_converters mine --input data.txt --output data/mine
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..common.errors import LONGEST_MESSAGE, one_line
from ..data_pipelines.convert.converter import Converter
from ..data_pipelines.convert.driver import write_share
from ..data_pipelines.convert.registry import load_converters
from ..data_pipelines.convert.samples import OutputOptions
from ..data_pipelines.job import REJECTED
from ..data_pipelines.node_job import Node
from ..data_pipelines.workers import MOST_WORKERS
from . import cli, options, prepare_reports, prepare_sources
from .options import integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    include: Any = parser.add_argument(
        "--include-path",
        type=options.path,
        action=_IncludePath,
        metavar="FOLDER",
        help="also use the converters in a folder's *.py files; must precede KIND",
    )
    include.kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    add_converters(include.kinds, load_converters())
    for module in (prepare_reports, prepare_sources):
        module.add_kinds(partial(add_kind, include.kinds))


class _IncludePath(argparse.Action):
    """Adds the converters of a folder while the command line is parsed."""

    kinds: Any

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        add_converters(self.kinds, load_converters([values]))


def add_converters(kinds: Any, converters: dict[str, type[Converter]]) -> None:
    """Add a parser of each converter that has none."""
    for kind, converter in converters.items():
        if kind not in kinds.choices:
            parser = add_kind(kinds, kind, converter.summary, converter.example)
            parser.set_defaults(run_kind=partial(_convert, converter))
            _add_output_arguments(parser)
            converter.add_arguments(parser)


def add_kind(kinds: Any, kind: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a parser for `dualtoken prepare KIND`."""
    parser: argparse.ArgumentParser = kinds.add_parser(
        kind,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"Example:\n  {example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=options.path, required=True, help="folder of shards to make")
    add("--shard-size", type=integer(1), default=10_000, help="records per shard (default %(default)s)")
    add("--workers", type=integer(1, MOST_WORKERS), default=1, help="processes (default %(default)s)")
    add("--overwrite", action="store_true", help="replace an existing folder")
    node = "make the share of node I (from 0) of N; default: from the variables of torchrun or srun"
    add("--node", metavar="I/N", help=node)
    options.add_shared(parser, "--no-progress")


def run(args: argparse.Namespace) -> int:
    """Make or report on shards. UserError for a mistake in the arguments."""
    return int(args.run_kind(args))


def _convert(converter: type[Converter], args: argparse.Namespace) -> int:
    output = OutputOptions(
        args.output, args.shard_size, args.overwrite, progress=not args.no_progress, workers=args.workers
    )
    node = Node.from_environment() if args.node is None else Node.parse(args.node)
    manifest = write_share(converter.from_arguments(args), output, node)
    if isinstance(manifest, list):
        print(_waiting_for(manifest, node, args.output))
        return 0
    counts = manifest["counts"]
    splits = ", ".join(f"{split} {number}" for split, number in counts["splits"].items())
    made = f"{options.counted(counts['records'], 'record')}, {options.counted(counts['images'], 'image')}"
    print(f"{made} in {args.output} ({splits})")
    if skipped := manifest.get("skipped"):
        print(f"left out: {', '.join(f'{n} {what}' for what, n in skipped.items())}", file=sys.stderr)
    if counts["rejected"]:
        print(_rejected(manifest["rejected"]["reasons"], args.output / REJECTED), file=sys.stderr)
    return 0


def _waiting_for(nodes: list[int], node: Node, output: Path) -> str:
    share = f"the share of node {node} of {output} is finished"
    if not nodes:
        return f"{share}; another node merges all of them"
    return f"{share}; missing: node {', '.join(map(str, nodes))}. The last one merges all of them."


def _rejected(reasons: dict[str, int], names: Path) -> str:
    """How many samples were rejected and why, in one line, the most frequent reasons first."""
    rejected = options.counted(sum(reasons.values()), "sample")
    line = f"{rejected} rejected, named in {one_line(names, LONGEST_MESSAGE // 2)}"
    for number, (reason, times) in enumerate(sorted(reasons.items(), key=lambda item: -item[1])):
        longer = f"{line}{', ' if number else ': '}{reason} ({times})"
        if len(longer) > LONGEST_MESSAGE - len(", …"):
            return f"{line}, …"
        line = longer
    return line


if __name__ == "__main__":
    cli.run_main(__spec__)
