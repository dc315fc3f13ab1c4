"""Converters of small sets in a zip or folder with a `meta.jsonl`: easy-VQA, NLVR, emoji, labels.

Splits are "train" and "heldout" unless a set names its own, and no converter puts two views of one thing into
different splits.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...common.errors import shown
from ...common.outputs import Inputs
from ...common.values import whole_number
from ..convert.driver import Sample, Source, write_source
from ..convert.foreign_values import needed_text
from ..convert.samples import MOST_PIXELS, ImageList, OutputOptions, Rejected, stable_fraction
from ..records import Record, RecordError, assistant, image_part, question_turns, user
from ..scenes.language import article
from ..shards.stored_image import encode_image, shrink
from .label_wordings import label_question

#: The last images of easy-VQA, by their number, are held out.
EASYVQA_HELD_OUT = 400
#: Share of emoji that are held out, in all their styles.
EMOJI_HELD_OUT = 0.05
#: Questions about one image, at most.
MOST_QUESTIONS = 10_000
#: x ranges of the three boxes of an NLVR drawing, each 100 × 100 pixels.
NLVR_BOXES: tuple[tuple[int, int], ...] = ((0, 100), (150, 250), (300, 400))
_NLVR_SPLITS = {"train1000": "train", "hidden": "train", "dev": "heldout"}

_Path = str | os.PathLike[str]
_Item = tuple[Record, str]


def _generator(text: str) -> np.random.Generator:
    """Chance that depends on `text` only."""
    return np.random.default_rng(int(stable_fraction(text) * 2**53))


def _wants(task: str, kind: str) -> bool:
    return task in (kind, "all")


@dataclass
class ListSource(Source):
    """A list of images as a source: a sample is a row, `entry(images, row)` makes its records."""

    images: ImageList
    entry: Callable[..., Iterator[_Item]]
    name: str
    licence: str
    given: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (size := self.given.get("max_image_size")) is not None:
            whole_number(size, "--max-image-size", 8, MOST_PIXELS)
        self.records_per_sample = int(self.given.get("variants", 1)) + (self.given.get("task") == "all")

    def settings(self) -> dict[str, Any]:
        return self.given

    def inputs(self) -> Inputs:
        return {"--input": self.images.path}

    def fingerprint(self) -> str:
        rows = json.dumps(self.images.rows, sort_keys=True, ensure_ascii=False)
        broken = "".join(f"\n{one.sample} {one.reason}" for one in self.images.broken)
        return hashlib.sha256((rows + broken).encode()).hexdigest()

    def total(self) -> int:
        return len(self.images.rows) + len(self.images.broken)

    def samples(self) -> Iterator[Sample | Rejected]:
        for row in self.images.rows:
            yield Sample(row["file"], row)
        yield from self.images.broken

    def records(self, payload: dict[str, Any]) -> Iterator[_Item]:
        return self.entry(self.images, payload)


# --- easy-VQA ----------------------------------------


def prepare_easyvqa(
    path: _Path,
    output: OutputOptions,
    *,
    task: str = "vqa",
    questions_per_image: int = 10,
    max_image_size: int | None = None,
) -> dict[str, Any]:
    """easy-VQA: up to `questions_per_image` questions about each drawing, and "a blue rectangle" → drawing.

    The 400 images with the highest numbers are the held-out split.
    """
    whole_number(questions_per_image, "--questions-per-image", 1, MOST_QUESTIONS)
    images = ImageList(path)
    images.require("file", "qa")
    border = sorted(_image_number(row) for row in images.rows)[
        -min(EASYVQA_HELD_OUT, len(images.rows) // 2 + 1)
    ]

    entry = partial(
        _easyvqa_entry,
        border=border,
        task=task,
        questions_per_image=questions_per_image,
        max_image_size=max_image_size,
    )
    settings = {"task": task, "questions_per_image": questions_per_image, "max_image_size": max_image_size}
    return write_source(ListSource(images, entry, "easy-VQA", "MIT", settings), output)


def _easyvqa_entry(
    images: ImageList,
    row: dict[str, Any],
    *,
    border: int,
    task: str,
    questions_per_image: int,
    max_image_size: int | None,
) -> Iterator[_Item]:
    image = image_part(images.image(row["file"], max_image_size))
    number = _image_number(row)
    split = "heldout" if number >= border else "train"
    pairs = [
        (needed_text(question, "question"), needed_text(answer, "answer")) for question, answer in row["qa"]
    ]
    if _wants(task, "vqa"):
        order = _generator(row["file"]).permutation(len(pairs))[:questions_per_image].tolist()
        messages = question_turns([image], [pairs[i] for i in order])
        yield (Record(f"easyvqa-{number}", messages, {"task": "vqa"}), split)
    if _wants(task, "t2i"):
        prompt = _easyvqa_phrase(pairs)
        yield (Record(f"easyvqa-t2i-{number}", [user(prompt), assistant(image)], {"task": "t2i"}), split)


def _image_number(row: dict[str, Any]) -> int:
    try:
        return int(Path(row["file"]).stem)
    except (ValueError, KeyError, TypeError):
        return -1


def _easyvqa_phrase(pairs: list[tuple[str, str]]) -> str:
    """'a blue rectangle': the colour and the shape that the questions and answers of one drawing tell."""
    colour = shape = None
    for question, answer in pairs:
        named_shape = re.search(r"\b(circle|rectangle|triangle)\b", question)
        named_colour = re.search(r"\b(\w+) shape\b", question)
        if question.startswith("what"):
            about_colour = "color" in question
            colour, shape = (answer, shape) if about_colour else (colour, answer)
            certain = True
        else:
            certain = (answer == "yes") != bool(re.search(r"\b(no|not)\b", question))
        if certain and named_shape:
            shape = named_shape.group(1)
        if certain and named_colour and named_colour.group(1) not in ("a", "the", "what"):
            colour = named_colour.group(1)
    if colour is None or shape is None:
        raise RecordError("its questions do not tell both colour and shape")
    return f"{article(colour)} {colour} {shape}"


# --- NLVR ----------------------------------------


def prepare_nlvr(
    path: _Path, output: OutputOptions, *, max_image_size: int | None = None, permutations: int = 6
) -> dict[str, Any]:
    """NLVR: the three boxes of a drawing as three images, and "True or false: <sentence>".

    train1000 and hidden are the train split, dev is held out; the six permutations of an example stay
    together. The first `permutations` of each are kept: they show the same boxes in another order.
    """
    images = ImageList(path)
    images.require("file", "split", "id", "perm", "sentence", "label")
    # A row whose order is not a number comes through, to be rejected by name.
    images.rows = [row for row in images.rows if not (_order(row) or 0) >= permutations]
    images.rows.sort(key=lambda row: (str(row.get("split")), str(row.get("id")), str(row.get("perm"))))

    entry = partial(_nlvr_entry, max_image_size=max_image_size)
    settings = {"max_image_size": max_image_size, "permutations": permutations}
    return write_source(ListSource(images, entry, "NLVR", "CC-BY-4.0", settings), output)


def _order(row: dict[str, Any]) -> int | None:
    """Which of the six orders of its boxes a row shows."""
    try:
        return int(row["perm"])
    except (KeyError, TypeError, ValueError):
        return None


def _nlvr_entry(images: ImageList, row: dict[str, Any], *, max_image_size: int | None) -> Iterator[_Item]:
    split = _NLVR_SPLITS.get(str(row["split"]))
    if split is None:
        raise RecordError(f"unknown split {shown(row['split'])}")
    if _order(row) is None:
        raise RecordError(f"perm is {shown(row['perm'])}, not a number")
    label = str(row["label"]).lower()
    if label not in ("true", "false"):
        raise RecordError(f"label {shown(row['label'])} is neither true nor false")
    boxes = _nlvr_boxes(images.image(row["file"]).open().convert("RGB"), max_image_size)
    parts = [image_part(encode_image(box)) for box in boxes]
    sentence = " ".join(needed_text(row["sentence"], "sentence").split()).rstrip(". ")
    metadata = {"task": "vqa", "kinds": ["statement"], "id": row["id"], "perm": row["perm"]}
    record_id = f"nlvr-{row['split']}-{needed_text(row['id'], 'id')}-{row['perm']}"
    yield (
        Record(record_id, question_turns(parts, [(f"True or false: {sentence}.", label)]), metadata),
        split,
    )


def _nlvr_boxes(drawing: Image.Image, max_image_size: int | None) -> list[Image.Image]:
    if drawing.size != (NLVR_BOXES[-1][1], 100):
        raise RecordError(f"a drawing is 400 × 100 pixels, this one is {drawing.width} × {drawing.height}")
    boxes = [drawing.crop((left, 0, right, 100)) for left, right in NLVR_BOXES]
    if max_image_size is not None and max_image_size < 100:
        boxes = [shrink(box, max_image_size) for box in boxes]
    return boxes


# --- emoji ----------------------------------------


def prepare_emoji(
    path: _Path, output: OutputOptions, *, task: str = "vqa", max_image_size: int | None = None
) -> dict[str, Any]:
    """Emoji: "What is this?" → name, "<name> emoji" → image. 5 % of them are held out, in every style."""
    images = ImageList(path)
    images.require("file", "style", "emoji", "name")

    entry = partial(_emoji_entry, task=task, max_image_size=max_image_size)
    settings = {"task": task, "max_image_size": max_image_size}
    return write_source(
        ListSource(
            images,
            entry,
            "Noto Emoji and region flags",
            "Apache-2.0 and OFL-1.1 (emoji), public domain (flags), MIT (names)",
            settings,
        ),
        output,
    )


def _emoji_entry(
    images: ImageList, row: dict[str, Any], *, task: str, max_image_size: int | None
) -> Iterator[_Item]:
    image = image_part(images.image(row["file"], max_image_size))
    emoji = needed_text(row["emoji"], "emoji")
    split = "heldout" if stable_fraction(emoji) < EMOJI_HELD_OUT else "train"
    name = needed_text(row["name"], "name")
    metadata = {"emoji": emoji, "style": row["style"], "group": row.get("group")}
    record_id = f"emoji-{Path(row['file']).with_suffix('').as_posix()}"
    if _wants(task, "vqa"):
        messages = [user(image, "What is this?"), assistant(name)]
        yield (Record(record_id, messages, {"task": "vqa", **metadata}), split)
    if _wants(task, "t2i"):
        messages = [user(f"{name} emoji"), assistant(image)]
        yield (Record(f"{record_id}-t2i", messages, {"task": "t2i", **metadata}), split)


# --- photos with labels ----------------------------------------


def prepare_labels(
    path: _Path,
    output: OutputOptions,
    *,
    task: str = "vqa",
    question: str = "What is shown in the photo?",
    source: str | None = None,
    licence: str = "unknown",
    max_image_size: int | None = None,
    variants: int = 1,
    noun: str | None = None,
) -> dict[str, Any]:
    """Photos with one label: `question` → label, "a photo of a <label>" → image. Keeps the set's splits.

    variants: questions about each photo, a record each: after `question` itself the same in other words,
    with options, as a yes-no question or as a caption. Splits but "train" have `question` alone, so that
    figures on them can be compared. noun: what all labels are, such as "piece of clothing".
    """
    whole_number(variants, "--variants", 1, MOST_QUESTIONS)
    images = ImageList(path)
    images.require("file", "label")

    words: dict[str, Any] = {}
    if variants > 1 or noun is not None:
        words = {"variants": variants, "noun": noun}
    labels = tuple(sorted({str(row["label"]).strip() for row in images.rows if _has_label(row)}))
    entry = partial(
        _labels_entry, task=task, question=question, max_image_size=max_image_size, labels=labels, **words
    )
    settings = {"task": task, "question": question, "max_image_size": max_image_size, **words}
    return write_source(ListSource(images, entry, source or Path(path).stem, licence, settings), output)


def _has_label(row: dict[str, Any]) -> bool:
    try:
        return bool(needed_text(row.get("label"), "label"))
    except RecordError:
        return False


def _labels_entry(
    images: ImageList,
    row: dict[str, Any],
    *,
    task: str,
    question: str,
    max_image_size: int | None,
    labels: tuple[str, ...] = (),
    variants: int = 1,
    noun: str | None = None,
) -> Iterator[_Item]:
    image = image_part(images.image(row["file"], max_image_size))
    label = needed_text(row["label"], "label")
    split = "train" if row.get("split") is None else str(row["split"])
    record_id = Path(row["file"]).with_suffix("").as_posix()
    metadata = {"task": "vqa", "label": label}
    if _wants(task, "vqa"):
        yield (Record(record_id, [user(image, question), assistant(label)], metadata), split)
        rng = _generator(row["file"])
        for number in range(2, variants + 1 if split == "train" else 2):
            asked = label_question(label, labels, noun, rng)
            messages = [user(image, asked.question), assistant(asked.answer)]
            other = Record(f"{record_id}-{number}", messages, {**metadata, "kinds": [asked.kind]})
            yield (other, split)
    if _wants(task, "t2i"):
        prompt = f"a photo of {article(label)} {label}"
        record = Record(f"{record_id}-t2i", [user(prompt), assistant(image)], {"task": "t2i", "label": label})
        yield (record, split)
