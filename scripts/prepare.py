"""Make shards for training and evaluation from procedural scenes or from data sets.

Every kind has options of its own: ``dualtoken prepare scenes --help``.

Examples:
  dualtoken prepare scenes --output data/scenes-vqa --count 20000 --task vqa
  dualtoken prepare scenes --output data/scenes-t2i --task t2i --skills single_object=0.7,position=0.3
  dualtoken prepare emoji --input emoji_128.zip --output data/emoji --task t2i --max-image-size 64
  dualtoken prepare llava --input llava.json --image-folder images --output data/llava
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..data_pipelines.convert import OutputOptions
from ..data_pipelines.convert_scenes import DEFAULT_SKILLS, TASKS, SceneOptions, prepare_scenes
from ..tokenizer.errors import UserError

EXAMPLES = {
    "scenes": "dualtoken prepare scenes --output data/scenes-vqa --count 20000 --task vqa",
    "easyvqa": "dualtoken prepare easyvqa --input easyvqa_64.zip --output data/easyvqa --task all",
    "nlvr": "dualtoken prepare nlvr --input nlvr.zip --output data/nlvr --max-image-size 64",
    "emoji": "dualtoken prepare emoji --input emoji_128.zip --output data/emoji --max-image-size 64",
    "labels": "dualtoken prepare labels --input clothing_128.zip --output data/clothing --max-image-size 64",
    "llava": "dualtoken prepare llava --input llava.json --image-folder images --output data/llava",
}
KINDS = {
    "scenes": "generate procedural scenes (nothing is downloaded)",
    "easyvqa": "drawings with short questions (zip or folder with meta.jsonl: file, qa)",
    "nlvr": "three boxes and a statement that is true or false (file, split, id, perm, sentence, label)",
    "emoji": "emoji with their names (file, style, emoji, name)",
    "labels": "photos with one label each (file, label, split)",
    "llava": "conversations in LLaVA's JSON or JSON lines",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command to `parser`."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, what in KINDS.items():
        sub = kinds.add_parser(
            kind,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=f"Example:\n  {EXAMPLES[kind]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        _add_output_arguments(sub)
        if kind == "scenes":
            _add_scene_arguments(sub)
        else:
            _add_source_arguments(sub, kind)


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="folder of shards to make")
    parser.add_argument(
        "--shard-size", type=int, default=10_000, help="records per shard (default %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def _add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = SceneOptions()
    skills = ",".join(f"{name}={weight}" for name, weight in DEFAULT_SKILLS.items())
    parser.add_argument(
        "--count", type=int, default=defaults.count, help="number of records (default %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=defaults.seed,
        help="default %(default)s; 10**9 and above are never trained on",
    )
    parser.add_argument(
        "--image-size", type=int, default=defaults.image_size, help="pixels (default %(default)s)"
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        default=defaults.task,
        help="questions, drawing prompts or captions (default vqa)",
    )
    parser.add_argument("--skills", default=skills, help="weights of drawing prompts (default %(default)s)")
    parser.add_argument(
        "--questions-per-image",
        type=int,
        default=defaults.questions_per_image,
        help="turns of one vqa record (default %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes (default %(default)s)")


def _add_source_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("--input", type=Path, required=True, help="the data set")
    parser.add_argument(
        "--max-image-size",
        type=int,
        default=None,
        help="reduce the shorter side to at most this (default: keep)",
    )
    if kind in ("easyvqa", "emoji", "labels"):
        parser.add_argument(
            "--task",
            choices=("vqa", "t2i", "all"),
            default="vqa",
            help="questions, drawing or both (default vqa)",
        )
    if kind == "easyvqa":
        parser.add_argument("--questions-per-image", type=int, default=10, help="default %(default)s")
    if kind == "nlvr":
        parser.add_argument(
            "--permutations",
            type=int,
            choices=range(1, 7),
            default=6,
            help="how many of an example's six orders of boxes to keep (default %(default)s)",
        )
    if kind == "labels":
        parser.add_argument("--question", default="What is shown in the photo?", help="default: %(default)s")
        parser.add_argument("--source", default=None, help="name of the data set for the manifest")
        parser.add_argument("--licence", default="unknown", help="licence of the data set for the manifest")
    if kind == "llava":
        parser.add_argument("--image-folder", type=Path, default=None, help="default: beside the JSON")
        parser.add_argument("--licence", default="unknown", help="licence of the data set for the manifest")


def run(args: argparse.Namespace) -> int:
    """Make the shards and print where they are. Raises UserError for a mistake in the arguments."""
    output = OutputOptions(args.output, args.shard_size, args.overwrite, progress=not args.no_progress)
    manifest = _prepare(args, output)
    counts = manifest["counts"]
    print(f"{counts['records']} records, {counts['images']} images in {args.output} ({_splits(counts)})")
    if counts["rejected"]:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in manifest["rejected"]["reasons"].items())
        print(f"{counts['rejected']} samples rejected ({reasons}); the manifest names them", file=sys.stderr)
    return 0


def _prepare(args: argparse.Namespace, output: OutputOptions) -> dict[str, Any]:
    if args.kind == "scenes":
        options = SceneOptions(
            args.count,
            args.seed,
            args.image_size,
            args.task,
            parse_weights(args.skills),
            args.questions_per_image,
        )
        return prepare_scenes(options, output, args.workers)
    from ..data_pipelines import convert_llava, convert_sets

    if args.max_image_size is not None and args.max_image_size < 8:
        raise UserError(f"--max-image-size must be at least 8, got {args.max_image_size}.")
    common = {"max_image_size": args.max_image_size, "output": output}
    if args.kind == "llava":
        return convert_llava.prepare_llava(
            args.input, image_folder=args.image_folder, licence=args.licence, **common
        )
    if args.kind == "easyvqa":
        return convert_sets.prepare_easyvqa(
            args.input, task=args.task, questions_per_image=args.questions_per_image, **common
        )
    if args.kind == "nlvr":
        return convert_sets.prepare_nlvr(args.input, permutations=args.permutations, **common)
    if args.kind == "emoji":
        return convert_sets.prepare_emoji(args.input, task=args.task, **common)
    return convert_sets.prepare_labels(
        args.input, task=args.task, question=args.question, source=args.source, licence=args.licence, **common
    )


def parse_weights(text: str) -> dict[str, float]:
    """'single_object=0.7,position=0.3' as a dictionary."""
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, _, weight = item.partition("=")
        try:
            weights[name.strip()] = float(weight or 1.0)
        except ValueError as error:
            raise UserError(f"--skills '{item}': expected name=weight, e.g. single_object=0.7.") from error
    return weights


def _splits(counts: dict[str, Any]) -> str:
    return ", ".join(f"{split} {number}" for split, number in counts["splits"].items())


if __name__ == "__main__":
    from .cli import run_command

    sys.exit(run_command("prepare", sys.argv[1:]))
