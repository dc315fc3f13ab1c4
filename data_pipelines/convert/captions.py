"""Records of images with captions, for folders, WebDataset tars and Hugging Face datasets."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...common.errors import UserError
from ...common.values import one_of
from ..records import EncodedImage, Record, RecordError, assistant, image_part, user
from .foreign_values import as_list, first_given, optional_text
from .samples import ImageOptions

TASKS: tuple[str, ...] = ("caption", "t2i", "all")
CAPTION_FIELDS: tuple[str, ...] = ("caption", "text", "captions", "description", "prompt")


@dataclass(frozen=True)
class CaptionOptions:
    """How captioned images become records: one for each caption of an image.

    task: "caption" (image and `question` → caption), "t2i" (caption → image) or "all" (both, as two records).
    """

    task: str = "caption"
    question: str = "Describe the image."
    images: ImageOptions = field(default_factory=ImageOptions)

    def __post_init__(self) -> None:
        one_of(self.task, "--task", TASKS)
        if not self.question.strip():
            raise UserError("--question is empty: give the question about an image, e.g. 'What is shown?'")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser, column: str) -> None:
        """Add these options; `column` describes where captions are."""
        ImageOptions.add_arguments(parser)
        task = "image to caption, caption to image, or both (default %(default)s)"
        parser.add_argument("--task", choices=TASKS, default=cls.task, help=task)
        question = "asked for a caption (default: %(default)s)"
        parser.add_argument("--question", default=cls.question, help=question)
        parser.add_argument("--caption-column", help=f"{column} with the caption (default: a usual name)")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> CaptionOptions:
        """The options of a parsed command line."""
        return cls(args.task, args.question, ImageOptions.from_arguments(args))

    @property
    def records_per_sample(self) -> int:
        """Records of an image with one caption."""
        return 2 if self.task == "all" else 1

    def records(
        self, name: str, image: EncodedImage, captions: list[str], metadata: Mapping[str, Any]
    ) -> Iterator[tuple[Record, str]]:
        """(record, split) for every caption of one image; `name` decides the split."""
        split = self.images.split(name)
        part = image_part(image)
        for number, caption in enumerate(captions):
            record_id = name if len(captions) == 1 else f"{name}-{number}"
            if self.task != "t2i":
                messages = [user(part, self.question), assistant(caption)]
                yield Record(record_id, messages, {"task": "caption", **metadata}), split
            if self.task != "caption":
                suffix = "-t2i" if self.task == "all" else ""
                messages = [user(caption), assistant(part)]
                yield Record(record_id + suffix, messages, {"task": "t2i", **metadata}), split


def caption_list(value: Any) -> list[str]:
    """The captions in a field: a string, a number, or a list of these, without null and empty ones.

    Errors:
        RecordError where no caption is left.
    """
    if not (given := as_list(value)):
        raise RecordError("it has no caption")
    captions = [(optional_text(item, "caption") or "").strip() for item in given]
    if not any(captions):
        raise RecordError("its caption is empty")
    return [caption for caption in captions if caption]


def find_caption(entry: Any, field_name: str | None) -> Any:
    """The caption in a JSON value: the field `field_name`, or the first of CAPTION_FIELDS, or None."""
    if not isinstance(entry, Mapping):
        return entry if isinstance(entry, str | list) else None
    return first_given(entry, *(CAPTION_FIELDS if field_name is None else (field_name,)))
