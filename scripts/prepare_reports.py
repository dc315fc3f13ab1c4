"""`dualtoken prepare check` and `dualtoken prepare stats`: reports about a folder of shards."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..common.errors import ImageError, UserError
from ..common.images.reading import MAX_PIXELS, load_image
from ..common.output_files import check_file, is_our_image, write_image
from ..data_pipelines.convert.samples import MOST_PIXELS
from ..data_pipelines.records import Record, RecordError
from ..data_pipelines.shards.format import read_manifest
from ..data_pipelines.shards.reader import ShardDataset
from ..data_pipelines.workers import MOST_WORKERS
from . import options
from .nano.contact_sheet import card_sheet
from .options import integer

_SHOWN_FAULTS = 100
_SHOWN_REASONS = 20
_CARD_TEXT = 600
MOST_SAMPLES = 1000


def add_kinds(add_kind: Callable[[str, str, str], argparse.ArgumentParser]) -> None:
    """Add `check` and `stats`; `add_kind` makes a parser from name, summary and example."""
    check = add_kind(
        "check",
        "check a folder of shards: names file, record and fault; exit status 2 when there is one",
        "dualtoken prepare check data/llava --workers 4",
    )
    stats = add_kind(
        "stats",
        "counts and sizes of a folder of shards, and a sheet of some records",
        """dualtoken prepare stats data/llava
  dualtoken prepare stats data/llava --json > llava.json
  dualtoken prepare stats data/llava --sheet llava.png --samples 24""",
    )
    for parser, run_kind in ((check, _check), (stats, _stats)):
        parser.set_defaults(run_kind=run_kind)
        parser.add_argument("folder", type=options.path, metavar="FOLDER", help="folder of shards")
        parser.add_argument(
            "--workers", type=integer(1, MOST_WORKERS), default=1, help="processes (default %(default)s)"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    check.add_argument(
        "--max-pixels",
        type=integer(64, MOST_PIXELS),
        default=MAX_PIXELS,
        help="most pixels of an image (default %(default)s)",
    )
    check.add_argument("--no-progress", action="store_true", help="no progress bar")
    add = stats.add_argument
    add("--sheet", type=options.path, metavar="PNG", help="also make a sheet of records")
    add(
        "--samples",
        type=integer(1, MOST_SAMPLES),
        default=24,
        help="records on the sheet (default %(default)s)",
    )
    add("--seed", type=options.seed, default=0, help="which records (default %(default)s)")


def _check(args: argparse.Namespace) -> int:
    from ..data_pipelines.shards.check import check_shards

    shards = len(read_manifest(args.folder)["shards"])
    faults = []
    results = check_shards(args.folder, max_pixels=args.max_pixels, workers=args.workers)
    for _, found in tqdm(results, total=shards, unit="shards", disable=args.no_progress, mininterval=1.0):
        faults.extend(found)
    if args.json:
        print(json.dumps({"shards": shards, "faults": [vars(fault) for fault in faults]}, ensure_ascii=False))
        return 2 if faults else 0
    if faults:
        print("\n".join(map(str, faults[:_SHOWN_FAULTS])))
        if len(faults) > _SHOWN_FAULTS:
            print(f"… and {len(faults) - _SHOWN_FAULTS} more: --json lists them all")
        files = len({fault.file for fault in faults})
        print(
            f"{args.folder}: {options.counted(len(faults), 'fault')} in {options.counted(files, 'file')}",
            file=sys.stderr,
        )
        return 2
    print(f"{args.folder}: {options.counted(shards, 'shard')}, no fault")
    return 0


def _stats(args: argparse.Namespace) -> int:
    from ..data_pipelines.shards.statistics import statistics

    sheet = None if args.sheet is None else options.png_path(args.sheet, "--sheet")
    if sheet is not None:
        check_file(sheet, {"FOLDER": args.folder}, is_our_image, "--sheet")
    facts = statistics(args.folder, args.workers)
    print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else table(facts))
    if sheet is not None:
        write_image(sample_sheet(args.folder, args.samples, args.seed), sheet)
        print(f"wrote {sheet}", file=sys.stderr)
    return 0


def table(facts: dict[str, Any]) -> str:
    """The statistics as lines of text."""
    rows = [
        ("source", facts["source"]),
        ("licence", facts["licence"]),
        ("records", f"{facts['records']} ({_counts(facts['splits'])})"),
        ("shards", f"{facts['shards']}, {facts['bytes'] / 1e6:.1f} MB"),
        ("tasks", _counts(facts["tasks"])),
        ("images", f"{facts['images']} ({_counts(facts['image_formats'] or facts['codes'])})"),
        ("images per record", _counts(facts["images_per_record"], "{1} with {0}")),
        ("image width", _spread(facts["image_width"])),
        ("image height", _spread(facts["image_height"])),
        ("turns per record", _spread(facts["turns_per_record"])),
    ]
    for role, about in facts["roles"].items():
        counted = f"{about['turns']} turns, {about['texts']} texts, {about['images']} images"
        rows += [(role, counted), ("  characters", _spread(about["characters_per_text"]))]
        rows += [("  words", _spread(about["words_per_text"]))]
    rows.append(("unreadable", "; ".join(facts["unreadable"][:_SHOWN_REASONS]) or "none"))
    rows.append(("rejected", str(facts["rejected"]["samples"])))
    reasons = sorted(facts["rejected"]["reasons"].items(), key=lambda item: -item[1])
    rows += [(f"  {number}", reason) for reason, number in reasons[:_SHOWN_REASONS]]
    return "\n".join(f"{name:<18} {value}".rstrip() for name, value in rows)


def _counts(counts: dict[str, int], form: str = "{0} {1}") -> str:
    return ", ".join(form.format(name, number) for name, number in counts.items()) or "none"


def _spread(values: dict[str, float] | None) -> str:
    return "none" if values is None else ", ".join(f"{name} {value:g}" for name, value in values.items())


def sample_sheet(folder: Path, samples: int, seed: int) -> Image.Image:
    """A sheet of randomly chosen records with their images and texts. UserError when none can be read."""
    dataset = ShardDataset(folder, "all")
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:samples]
    cards = [card for index in sorted(chosen.tolist()) if (card := _card(dataset, index))]
    if not cards:
        raise UserError(f"No record of {folder} can be shown: run `dualtoken prepare check {folder}`.")
    return card_sheet(cards, columns=min(6, len(cards)))


def _card(dataset: ShardDataset, index: int) -> tuple[str, list[Image.Image]] | None:
    try:
        record = dataset[index]
        images = [load_image(part["image"]) for part in record.image_parts() if "image" in part]
    except (RecordError, ImageError):
        return None
    return _card_text(record), images


def _card_text(record: Record) -> str:
    """The record's id and task, then its turns, with <image> for images."""
    lines = [f"{record.id} [{record.task()}]"]
    for message in record.messages:
        parts = [part["text"] if part["type"] == "text" else "<image>" for part in message["content"]]
        lines.append(f"{message['role']}: {' '.join(parts)}")
    return "\n".join(lines)[:_CARD_TEXT]
