"""Converters of small sets in a zip or folder with a `meta.jsonl`: easy-VQA, NLVR, emoji, labels.

Splits are "train" and "heldout" unless the rows name others; images of the same thing share a split.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...common.arguments import integer
from ...common.errors import shown
from ...common.values import whole_number
from ..convert.foreign_values import required_text
from ..convert.samples import add_licence_argument, stable_fraction
from ..records import Record, RecordError, assistant, image_part, question_turns, user
from ..scenes.language import article
from ..shards.stored_image import encode_image, shrink
from .image_list import ListConverter
from .label_wordings import label_question

#: Held-out images of easy-VQA: those with the highest numbers.
EASYVQA_HELD_OUT = 400
#: Fraction of emoji that are held out, in all their styles.
EMOJI_HELD_OUT = 0.05
#: Most questions about one image.
MOST_QUESTIONS = 10_000
#: x ranges of the three boxes of an NLVR image, each 100 × 100 pixels.
NLVR_BOXES: tuple[tuple[int, int], ...] = ((0, 100), (150, 250), (300, 400))
_NLVR_SPLITS = {"train1000": "train", "hidden": "train", "dev": "heldout"}

_Item = tuple[Record, str]


def _generator(text: str) -> np.random.Generator:
    """A random generator seeded by `text`."""
    return np.random.default_rng(int(stable_fraction(text) * 2**53))


# --- easy-VQA ----------------------------------------


@dataclass
class EasyVqaConverter(ListConverter):
    """easy-VQA: up to `questions_per_image` questions about each image, and "a blue rectangle" → image."""

    kind = "easyvqa"
    summary = "images of one shape with short questions (zip or folder with meta.jsonl: file, qa)"
    example = "dualtoken prepare easyvqa --input easyvqa_64.zip --output data/easyvqa --task all"
    name, licence = "easy-VQA", "MIT"
    fields = ("file", "qa")
    options = ("task", "questions_per_image", "max_image_size")

    task: str = "vqa"
    questions_per_image: int = 10

    def __post_init__(self) -> None:
        whole_number(self.questions_per_image, "--questions-per-image", 1, MOST_QUESTIONS)
        super().__post_init__()
        rows = self.images.rows
        held_out = min(EASYVQA_HELD_OUT, len(rows) // 2 + 1)
        self.first_held_out = sorted(map(_image_number, rows))[-held_out]

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--questions-per-image", type=integer(1), default=10, help="default %(default)s")

    def records(self, payload: dict[str, Any]) -> Iterator[_Item]:
        row, image = payload, image_part(self.images.image(payload["file"], self.max_image_size))
        number = _image_number(row)
        split = "heldout" if number >= self.first_held_out else "train"
        pairs = [(required_text(pair[0], "question"), required_text(pair[1], "answer")) for pair in row["qa"]]
        if self.task != "t2i":
            order = _generator(row["file"]).permutation(len(pairs))[: self.questions_per_image].tolist()
            messages = question_turns([image], [pairs[i] for i in order])
            yield Record(f"easyvqa-{number}", messages, {"task": "vqa"}), split
        if self.task != "vqa":
            messages = [user(_easyvqa_phrase(pairs)), assistant(image)]
            yield Record(f"easyvqa-t2i-{number}", messages, {"task": "t2i"}), split


def _image_number(row: dict[str, Any]) -> int:
    try:
        return int(Path(row["file"]).stem)
    except (ValueError, KeyError, TypeError):
        return -1


def _easyvqa_phrase(pairs: list[tuple[str, str]]) -> str:
    """'a blue rectangle': the colour and the shape that the questions and answers of one image name."""
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
        raise RecordError("its questions do not name both colour and shape")
    return f"{article(colour)} {colour} {shape}"


# --- NLVR ----------------------------------------


@dataclass
class NlvrConverter(ListConverter):
    """NLVR: the three boxes of an image as three images, and "True or false: <sentence>".

    train1000 and hidden are the train split, dev is held out. Of the six permutations of an example, the same
    boxes in another order, the first `permutations` are kept, in the same split.
    """

    kind = "nlvr"
    summary = "three boxes and a statement that is true or false (file, split, id, perm, sentence, label)"
    example = "dualtoken prepare nlvr --input nlvr.zip --output data/nlvr --max-image-size 64"
    name, licence = "NLVR", "CC-BY-4.0"
    fields = ("file", "split", "id", "perm", "sentence", "label")
    options = ("max_image_size", "permutations")

    permutations: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        # A row whose order is not a number is kept, and rejected with its name later.
        rows = [row for row in self.images.rows if (_order(row) or 0) < self.permutations]
        rows.sort(key=lambda row: (str(row.get("split")), str(row.get("id")), str(row.get("perm"))))
        self.images.rows = rows

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        keep = "how many of an example's six orders of boxes to keep (default %(default)s)"
        parser.add_argument("--permutations", type=integer(1, 6), default=6, help=keep)

    def records(self, payload: dict[str, Any]) -> Iterator[_Item]:
        row, split = payload, _NLVR_SPLITS.get(str(payload["split"]))
        if split is None:
            raise RecordError(f"unknown split {shown(row['split'])}")
        if _order(row) is None:
            raise RecordError(f"perm is {shown(row['perm'])}, not a number")
        label = str(row["label"]).lower()
        if label not in ("true", "false"):
            raise RecordError(f"label {shown(row['label'])} is neither true nor false")
        boxes = _nlvr_boxes(self.images.image(row["file"]).open().convert("RGB"), self.max_image_size)
        parts = [image_part(encode_image(box)) for box in boxes]
        sentence = " ".join(required_text(row["sentence"], "sentence").split()).rstrip(". ")
        metadata = {"task": "vqa", "kinds": ["statement"], "id": row["id"], "perm": row["perm"]}
        record_id = f"nlvr-{row['split']}-{required_text(row['id'], 'id')}-{row['perm']}"
        messages = question_turns(parts, [(f"True or false: {sentence}.", label)])
        yield Record(record_id, messages, metadata), split


def _order(row: dict[str, Any]) -> int | None:
    """Which of the six orders of boxes a row shows, or None."""
    try:
        return int(row["perm"])
    except (KeyError, TypeError, ValueError):
        return None


def _nlvr_boxes(image: Image.Image, max_image_size: int | None) -> list[Image.Image]:
    if image.size != (NLVR_BOXES[-1][1], 100):
        raise RecordError(f"an image is 400 × 100 pixels, this one is {image.width} × {image.height}")
    boxes = [image.crop((left, 0, right, 100)) for left, right in NLVR_BOXES]
    if max_image_size is not None and max_image_size < 100:
        boxes = [shrink(box, max_image_size) for box in boxes]
    return boxes


# --- emoji ----------------------------------------


@dataclass
class EmojiConverter(ListConverter):
    """Emoji: "What is this?" → name, "<name> emoji" → image. 5 % of them are held out, in every style."""

    kind = "emoji"
    summary = "emoji with their names (file, style, emoji, name)"
    example = "dualtoken prepare emoji --input emoji_128.zip --output data/emoji --max-image-size 64"
    name = "Noto Emoji and region flags"
    licence = "Apache-2.0 and OFL-1.1 (emoji), public domain (flags), MIT (names)"
    fields = ("file", "style", "emoji", "name")
    options = ("task", "max_image_size")

    task: str = "vqa"

    def records(self, payload: dict[str, Any]) -> Iterator[_Item]:
        row, image = payload, image_part(self.images.image(payload["file"], self.max_image_size))
        emoji = required_text(row["emoji"], "emoji")
        split = "heldout" if stable_fraction(emoji) < EMOJI_HELD_OUT else "train"
        name = required_text(row["name"], "name")
        metadata = {"emoji": emoji, "style": row["style"], "group": row.get("group")}
        record_id = f"emoji-{Path(row['file']).with_suffix('').as_posix()}"
        if self.task != "t2i":
            messages = [user(image, "What is this?"), assistant(name)]
            yield Record(record_id, messages, {"task": "vqa", **metadata}), split
        if self.task != "vqa":
            messages = [user(f"{name} emoji"), assistant(image)]
            yield Record(f"{record_id}-t2i", messages, {"task": "t2i", **metadata}), split


# --- photos with labels ----------------------------------------


@dataclass
class LabelsConverter(ListConverter):
    """Photos with one label: `question` → label, "a photo of a <label>" → image. Keeps the set's splits.

    variants: records with a question for each photo: `question`, then rewordings, options, yes-no questions
    and captions; splits other than "train" have only `question`, so that metrics are comparable. noun: what
    the labels are, such as "piece of clothing". source: the data set's name for the manifest (default: that
    of the file).
    """

    kind = "labels"
    summary = "photos with one label each (file, label, split)"
    example = "dualtoken prepare labels --input clothing_128.zip --output data/clothing --max-image-size 64"
    fields = ("file", "label")
    options = ("task", "question", "max_image_size", "variants", "noun")

    task: str = "vqa"
    question: str = "What is shown in the photo?"
    source: str | None = None
    licence: str = "unknown"
    variants: int = 1
    noun: str | None = None

    def __post_init__(self) -> None:
        whole_number(self.variants, "--variants", 1, MOST_QUESTIONS)
        super().__post_init__()
        self.name = self.source or Path(self.path).stem
        labelled = [row for row in self.images.rows if _has_label(row)]
        self.labels = tuple(sorted({str(row["label"]).strip() for row in labelled}))

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--question", default=cls.question, help="default: %(default)s")
        variants = "questions about each training photo, reworded after the first (default %(default)s)"
        parser.add_argument("--variants", type=integer(1), default=1, help=variants)
        parser.add_argument("--noun", help="what the labels are, e.g. 'piece of clothing'")
        parser.add_argument("--source", help="name of the data set for the manifest")
        add_licence_argument(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> LabelsConverter:
        given = {name: getattr(args, name) for name in (*cls.options, "source", "licence")}
        return cls(args.input, **given)

    def settings(self) -> dict[str, Any]:
        settings = super().settings()
        if self.variants == 1 and self.noun is None:
            del settings["variants"], settings["noun"]
        return settings

    def records(self, payload: dict[str, Any]) -> Iterator[_Item]:
        row, image = payload, image_part(self.images.image(payload["file"], self.max_image_size))
        label = required_text(row["label"], "label")
        split = "train" if row.get("split") is None else str(row["split"])
        record_id = Path(row["file"]).with_suffix("").as_posix()
        metadata = {"task": "vqa", "label": label}
        if self.task != "t2i":
            yield Record(record_id, [user(image, self.question), assistant(label)], metadata), split
            rng = _generator(row["file"])
            for number in range(2, self.variants + 1 if split == "train" else 2):
                asked = label_question(label, self.labels, self.noun, rng)
                messages = [user(image, asked.question), assistant(asked.answer)]
                yield Record(f"{record_id}-{number}", messages, {**metadata, "kinds": [asked.kind]}), split
        if self.task != "vqa":
            messages = [user(f"a photo of {article(label)} {label}"), assistant(image)]
            yield Record(f"{record_id}-t2i", messages, {"task": "t2i", "label": label}), split


def _has_label(row: dict[str, Any]) -> bool:
    try:
        return bool(required_text(row.get("label"), "label"))
    except RecordError:
        return False
