"""Images with captions: the records that folders, WebDataset tars and Hugging Face datasets share."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...common.errors import UserError
from ..records import EncodedImage, Record, RecordError, assistant, image_part, user
from .foreign_values import as_list, first_given, optional_text
from .samples import ImageOptions

TASKS: tuple[str, ...] = ("caption", "t2i", "all")
CAPTION_FIELDS: tuple[str, ...] = ("caption", "text", "captions", "description", "prompt")


@dataclass(frozen=True)
class CaptionOptions:
    """What captioned images become.

    task: "caption" (`question` about the image → caption), "t2i" (caption → image) or "all" (both, as two
    records). An image with several captions gives a record for each.
    """

    task: str = "caption"
    question: str = "Describe the image."
    images: ImageOptions = field(default_factory=ImageOptions)

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"--task {self.task} is unknown: allowed are {', '.join(TASKS)}.")
        if not self.question.strip():
            raise UserError(
                "--question is empty: give the question about an image, e.g. 'Describe the image.'"
            )

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser, column: str) -> None:
        """Add these options; `column` describes where captions are."""
        ImageOptions.add_arguments(parser)
        parser.add_argument(
            "--task",
            choices=TASKS,
            default="caption",
            help="image to caption, caption to image, or both (default %(default)s)",
        )
        parser.add_argument(
            "--question", default=cls().question, help="asked for a caption (default: %(default)s)"
        )
        parser.add_argument("--caption-column", help=f"{column} with the caption (default: usual)")

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
        """(record, split) of one image; all of them are in the split that `name` has."""
        split = self.images.split(name)
        part = image_part(image)
        for number, caption in enumerate(captions):
            record_id = name if len(captions) == 1 else f"{name}-{number}"
            if self.task in ("caption", "all"):
                messages = [user(part, self.question), assistant(caption)]
                yield Record(record_id, messages, {"task": "caption", **metadata}), split
            if self.task in ("t2i", "all"):
                suffix = "-t2i" if self.task == "all" else ""
                messages = [user(caption), assistant(part)]
                yield Record(record_id + suffix, messages, {"task": "t2i", **metadata}), split


def caption_list(value: Any) -> list[str]:
    """The captions in a field: a text, a number, or a list of these, whose null and empty ones are left out.

    Raises RecordError when there is none.
    """
    given = as_list(value)
    if not given:
        raise RecordError("it has no caption")
    captions = [text.strip() for item in given if (text := optional_text(item, "caption")) is not None]
    captions = [text for text in captions if text]
    if not captions:
        raise RecordError("its caption is empty")
    return captions


def find_caption(entry: Any, field_name: str | None) -> Any:
    """The caption in a JSON object: under `field_name`, or under the first usual name; None without one."""
    if not isinstance(entry, Mapping):
        return entry if isinstance(entry, str | list) else None
    return first_given(entry, *(CAPTION_FIELDS if field_name is None else (field_name,)))
