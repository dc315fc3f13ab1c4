"""Make shards for training and evaluation from procedural scenes or from data sets; check and count them.

Every kind has options of its own: ``dualtoken prepare llava --help``. A run that was stopped goes on when the
same command is given again. A sample that cannot be used is left out, counted and named; it stops nothing.

Examples:
  dualtoken prepare folder --input photos --output data/photos --task all
  dualtoken prepare llava --input llava.json --image-folder images --output data/llava --workers 8
  dualtoken prepare webdataset --input 'laion/{00000..00099}.tar' --output data/laion --task t2i
  dualtoken prepare hf --input HuggingFaceM4/the_cauldron --config vqav2 --output data/vqav2
  dualtoken prepare scenes --output data/scenes-vqa --count 20000 --task vqa
  dualtoken prepare sources --output data
  dualtoken prepare check data/llava
  dualtoken prepare stats data/llava --sheet llava.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..common.errors import LONGEST_MESSAGE, UserError, one_line, shown
from ..common.images.reading import MAX_PIXELS
from ..data_pipelines.convert.captions import TASKS as CAPTION_TASKS
from ..data_pipelines.convert.captions import CaptionOptions
from ..data_pipelines.convert.driver import Source, write_source
from ..data_pipelines.convert.samples import ImageOptions, OutputOptions
from ..data_pipelines.job import REJECTED
from ..data_pipelines.scenes.convert import DEFAULT_SKILLS, TASKS, SceneOptions, prepare_scenes
from ..data_pipelines.workers import MOST_WORKERS
from . import prepare_reports, prepare_sources
from .options import integer, path, seed, share

EXAMPLES = {
    "scenes": "dualtoken prepare scenes --output data/scenes-vqa --count 20000 --task vqa",
    "easyvqa": "dualtoken prepare easyvqa --input easyvqa_64.zip --output data/easyvqa --task all",
    "nlvr": "dualtoken prepare nlvr --input nlvr.zip --output data/nlvr --max-image-size 64",
    "emoji": "dualtoken prepare emoji --input emoji_128.zip --output data/emoji --max-image-size 64",
    "labels": "dualtoken prepare labels --input clothing_128.zip --output data/clothing --max-image-size 64",
    "llava": "dualtoken prepare llava --input llava.json --image-folder images --output data/llava",
    "folder": """dualtoken prepare folder --input photos --output data/photos --task all
  dualtoken prepare folder --input coco/train2017 --captions captions.jsonl --output data/coco --task t2i""",
    "webdataset": """dualtoken prepare webdataset --input 'laion/{00000..00099}.tar' --output data/laion
  dualtoken prepare webdataset --task t2i --input cc3m 'cc12m/*.tar' --output data/cc --workers 8""",
    "hf": """dualtoken prepare hf --input HuggingFaceM4/the_cauldron --config vqav2 --output data/vqav2
  dualtoken prepare hf --input downloads/flickr --caption-column caption --output data/flickr""",
}
KINDS = {
    "scenes": "generate procedural scenes (nothing is downloaded)",
    "easyvqa": "drawings with short questions (zip or folder with meta.jsonl: file, qa)",
    "nlvr": "three boxes and a statement that is true or false (file, split, id, perm, sentence, label)",
    "emoji": "emoji with their names (file, style, emoji, name)",
    "labels": "photos with one label each (file, label, split)",
    "llava": "conversations in LLaVA's JSON or JSON lines",
    "folder": "images with captions beside them or in a CSV, TSV or JSON lines file",
    "webdataset": "WebDataset tars as img2dataset writes them (image, txt, json)",
    "hf": "a Hugging Face data set: hub id, parquet files, or a folder of save_to_disk",
}
REPORTS = {
    "check": "is a folder of shards whole? Names file, record and fault; exit status 2 when there is one",
    "stats": "counts and sizes of a folder of shards, and a picture of some records",
}
REPORT_EXAMPLES = {
    "check": "dualtoken prepare check data/llava --workers 4",
    "stats": """dualtoken prepare stats data/llava
  dualtoken prepare stats data/llava --json > llava.json
  dualtoken prepare stats data/llava --sheet llava.png --samples 24""",
}
#: The kinds whose images can be limited and held out.
OPEN_KINDS = ("folder", "llava", "webdataset", "hf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command to `parser`."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, what in (KINDS | REPORTS | prepare_sources.KINDS).items():
        sub = kinds.add_parser(
            kind,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=f"Example:\n  {(EXAMPLES | REPORT_EXAMPLES | prepare_sources.EXAMPLES)[kind]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if kind in REPORTS:
            prepare_reports.add_arguments(sub, kind)
            continue
        if kind in prepare_sources.KINDS:
            prepare_sources.add_arguments(sub)
            continue
        _add_output_arguments(sub)
        if kind == "scenes":
            _add_scene_arguments(sub)
        else:
            _add_source_arguments(sub, kind)


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=path, required=True, help="folder of shards to make")
    parser.add_argument(
        "--shard-size", type=integer(1), default=10_000, help="records per shard (default %(default)s)"
    )
    parser.add_argument(
        "--workers", type=integer(1, MOST_WORKERS), default=1, help="processes (default %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing folder")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def _add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = SceneOptions()
    skills = ",".join(f"{name}={weight}" for name, weight in DEFAULT_SKILLS.items())
    parser.add_argument(
        "--count", type=integer(1), default=defaults.count, help="number of records (default %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=seed,
        default=defaults.seed,
        help="default %(default)s; 10**9 and above are never trained on",
    )
    parser.add_argument(
        "--image-size", type=integer(8), default=defaults.image_size, help="pixels (default %(default)s)"
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        default=defaults.task,
        help="questions, drawing prompts, captions or talks of several turns (default vqa)",
    )
    parser.add_argument("--skills", default=skills, help="weights of drawing prompts (default %(default)s)")
    parser.add_argument(
        "--questions-per-image",
        type=integer(1),
        default=defaults.questions_per_image,
        help="turns of one vqa record (default %(default)s)",
    )
    parser.add_argument(
        "--paraphrase",
        type=share,
        default=defaults.paraphrase,
        metavar="SHARE",
        help="share of questions and prompts in other words (default %(default)s)",
    )
    parser.add_argument(
        "--turns",
        type=integer(2),
        default=defaults.turns,
        help="most turns of one chat record (default %(default)s)",
    )
    parser.add_argument(
        "--grid",
        type=integer(8),
        help="cells a side of a layout for drawing prompts, 3 × 3 for each object (default: no layout)",
    )


def _add_source_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    if kind == "webdataset":
        inputs = "tars, folders of tars, globs ('a/*.tar') or ranges ('a/{00000..00099}.tar')"
        parser.add_argument("--input", nargs="+", required=True, metavar="TARS", help=inputs)
    elif kind == "hf":
        parser.add_argument("--input", required=True, help="hub id, folder, or parquet, JSON or CSV file")
    else:
        parser.add_argument("--input", type=path, required=True, help="the data set")
    parser.add_argument(
        "--max-image-size",
        type=integer(8),
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
        parser.add_argument("--questions-per-image", type=integer(1), default=10, help="default %(default)s")
    if kind == "nlvr":
        parser.add_argument(
            "--permutations",
            type=integer(1, 6),
            default=6,
            help="how many of an example's six orders of boxes to keep (default %(default)s)",
        )
    if kind == "labels":
        parser.add_argument("--question", default="What is shown in the photo?", help="default: %(default)s")
        parser.add_argument(
            "--variants",
            type=integer(1),
            default=1,
            help="questions about each training photo, all but the first in other words (default 1)",
        )
        parser.add_argument("--noun", default=None, help="what all labels are, e.g. 'piece of clothing'")
        parser.add_argument("--source", default=None, help="name of the data set for the manifest")
        parser.add_argument("--licence", default="unknown", help="licence of the data set for the manifest")
    if kind == "llava":
        parser.add_argument("--image-folder", type=path, default=None, help="default: beside the JSON")
    if kind in OPEN_KINDS:
        _add_open_arguments(parser, kind)


def _add_open_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument(
        "--max-pixels",
        type=integer(64),
        default=MAX_PIXELS,
        help="refuse images of more pixels before decoding them (default %(default)s)",
    )
    parser.add_argument(
        "--held-out", type=share, default=0.0, help="share for the split heldout, by name (default 0)"
    )
    parser.add_argument("--licence", default="unknown", help="licence of the data set for the manifest")
    if kind == "llava":
        return
    parser.add_argument(
        "--task",
        choices=CAPTION_TASKS,
        default="caption",
        help="image to caption, caption to image, or both (default %(default)s)",
    )
    parser.add_argument(
        "--question", default=CaptionOptions().question, help="asked for a caption (default: %(default)s)"
    )
    columns = "column" if kind == "hf" else "column of the list or field of the JSON"
    parser.add_argument("--caption-column", default=None, help=f"{columns} with the caption (default: usual)")
    if kind == "folder":
        parser.add_argument(
            "--captions", type=path, default=None, help="CSV, TSV or JSON lines that name the images"
        )
    if kind in ("folder", "hf"):
        parser.add_argument(
            "--image-column", default=None, help="with the image; hf: several, by commas (default: usual)"
        )
    if kind == "hf":
        _add_hf_arguments(parser)


def _add_hf_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default=None, help="configuration (subset) of the data set")
    parser.add_argument("--split", default="train", help="split to read (default %(default)s)")
    parser.add_argument("--revision", default=None, help="commit, branch or tag on the hub")
    parser.add_argument("--no-streaming", action="store_true", help="download all of it first")
    parser.add_argument("--question-column", default=None, help="column with a question about the image")
    parser.add_argument("--answer-column", default=None, help="column with its answer")
    parser.add_argument(
        "--conversations-column", default=None, help="column with turns (from, value) or (role, content)"
    )
    parser.add_argument("--id-column", default=None, help="column with a name for the record")
    parser.add_argument(
        "--image-folder", type=path, default=Path(), help="where columns that name files are looked up"
    )


def run(args: argparse.Namespace) -> int:
    """Make the shards and print where they are, or report about them.

    Raises UserError for a mistake in the arguments.
    """
    if args.kind in REPORTS:
        return prepare_reports.run(args)
    if args.kind in prepare_sources.KINDS:
        return prepare_sources.run(args)
    output = OutputOptions(
        args.output, args.shard_size, args.overwrite, progress=not args.no_progress, workers=args.workers
    )
    manifest = _prepare(args, output)
    counts = manifest["counts"]
    print(f"{counts['records']} records, {counts['images']} images in {args.output} ({_splits(counts)})")
    if skipped := manifest.get("skipped"):
        print(f"left out: {', '.join(f'{n} {what}' for what, n in skipped.items())}", file=sys.stderr)
    if counts["rejected"]:
        print(_rejected(manifest["rejected"]["reasons"], args.output / REJECTED), file=sys.stderr)
    return 0


def _rejected(reasons: dict[str, int], names: Path) -> str:
    """One line of how many samples were rejected and why, the most frequent reasons first."""
    line = f"{sum(reasons.values())} samples rejected, named in {one_line(names, LONGEST_MESSAGE // 2)}"
    for number, (reason, times) in enumerate(sorted(reasons.items(), key=lambda item: -item[1])):
        longer = f"{line}{', ' if number else ': '}{reason} ({times})"
        if len(longer) > LONGEST_MESSAGE - len(", …"):
            return f"{line}, …"
        line = longer
    return line


def _prepare(args: argparse.Namespace, output: OutputOptions) -> dict[str, Any]:
    if args.kind == "scenes":
        options = SceneOptions(
            args.count,
            args.seed,
            args.image_size,
            args.task,
            parse_weights(args.skills),
            args.questions_per_image,
            args.paraphrase,
            args.turns,
            args.grid,
        )
        return prepare_scenes(options, output)
    if args.kind in OPEN_KINDS:
        return write_source(_open_source(args), output)
    from ..data_pipelines.small_sets import convert_sets

    common = {"max_image_size": args.max_image_size, "output": output}
    if args.kind == "easyvqa":
        return convert_sets.prepare_easyvqa(
            args.input, task=args.task, questions_per_image=args.questions_per_image, **common
        )
    if args.kind == "nlvr":
        return convert_sets.prepare_nlvr(args.input, permutations=args.permutations, **common)
    if args.kind == "emoji":
        return convert_sets.prepare_emoji(args.input, task=args.task, **common)
    return convert_sets.prepare_labels(
        args.input,
        task=args.task,
        question=args.question,
        source=args.source,
        licence=args.licence,
        variants=args.variants,
        noun=args.noun,
        **common,
    )


def _open_source(args: argparse.Namespace) -> Source:
    from ..data_pipelines.convert import folder as convert_folder
    from ..data_pipelines.convert import hf as convert_hf
    from ..data_pipelines.convert import llava as convert_llava
    from ..data_pipelines.convert import webdataset as convert_webdataset

    images = ImageOptions(args.max_image_size, args.max_pixels, args.held_out)
    if args.kind == "llava":
        folder = args.image_folder or args.input.parent
        return convert_llava.LlavaSource(args.input, folder, args.licence, images)
    options = CaptionOptions(args.task, args.question, images)
    if args.kind == "folder":
        return convert_folder.FolderSource(
            args.input, args.captions, args.image_column, args.caption_column, args.licence, options
        )
    if args.kind == "webdataset":
        tars = convert_webdataset.find_tars(args.input)
        return convert_webdataset.WebDatasetSource(tars, args.caption_column, args.licence, options)
    columns = convert_hf.Columns(
        images=tuple(args.image_column.split(",")) if args.image_column else None,
        conversations=args.conversations_column,
        question=args.question_column,
        answer=args.answer_column,
        caption=args.caption_column,
        id=args.id_column,
    )
    return convert_hf.HuggingFaceSource(
        args.input,
        args.config,
        args.split,
        args.revision,
        not args.no_streaming,
        columns,
        args.image_folder,
        args.licence,
        options,
    )


def parse_weights(text: str) -> dict[str, float]:
    """'single_object=0.7,position=0.3' as a dictionary."""
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, _, weight = item.partition("=")
        try:
            weights[name.strip()] = float(weight or 1.0)
        except ValueError as error:
            raise UserError(
                f"--skills {shown(item)}: expected name=weight, e.g. single_object=0.7."
            ) from error
    return weights


def _splits(counts: dict[str, Any]) -> str:
    return ", ".join(f"{split} {number}" for split, number in counts["splits"].items())


if __name__ == "__main__":
    from .cli import run_command

    sys.exit(run_command("prepare", sys.argv[1:]))
