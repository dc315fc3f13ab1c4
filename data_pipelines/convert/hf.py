"""Convert Hugging Face datasets: from the hub, from parquet files, or from a folder of `save_to_disk`.

The columns of a row hold a conversation, a question with its answer, or captions. One process reads the rows
in order (streamed by default), and the workers decode their images.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...common import arguments
from ...common.errors import UserError, shown
from ...common.paths import user_path
from ...mllm.conversation.messages import is_media
from ..records import EncodedImage, Record, RecordError, image_part, question_turns
from .captions import CAPTION_FIELDS, CaptionOptions, caption_list
from .foreign_values import as_list, optional_text, required_text
from .row_converter import RowsConverter
from .samples import LARGEST_IMAGE_FILE, read_image
from .turns import check_no_media, conversation, mark_images, read_turns

CONVERSATION_COLUMNS: tuple[str, ...] = ("conversations", "messages", "texts")
IMAGE_COLUMNS: tuple[str, ...] = ("image", "images", "jpg", "png", "webp", "img")
#: Prefix of paths in a repository on the hub.
_REPOSITORY = "hf://"


@dataclass(frozen=True)
class Columns:
    """Names of columns; None takes a usual name that the data set has.

    `images` may be several columns, each with one image or a list of images.
    """

    images: tuple[str, ...] | None = None
    conversations: str | None = None
    question: str | None = None
    answer: str | None = None
    caption: str | None = None
    id: str | None = None

    def resolve(self, known: Sequence[str]) -> Columns:
        """These columns with defaults from `known`. UserError where they fit none of the three tasks."""
        for name in self.used():
            if name not in known:
                raise UserError(f"There is no column '{name}': the columns are {', '.join(known)}.")

        def usual(*names: str) -> str | None:
            return next((name for name in names if name in known), None)

        images = self.images or tuple(filter(None, [usual(*IMAGE_COLUMNS)]))
        found = replace(self, id=self.id or usual("id"), images=images)
        if (self.conversations, self.question, self.answer, self.caption) == (None,) * 4:
            if conversations := usual(*CONVERSATION_COLUMNS):
                found = replace(found, conversations=conversations)
            elif {"question", "answer"} <= set(known):
                found = replace(found, question="question", answer="answer")
            else:
                found = replace(found, caption=usual(*CAPTION_FIELDS))
        given = f"the columns are {', '.join(known)}" if known else "the first rows show no columns"
        if (found.question is None) != (found.answer is None):
            raise UserError("--question-column and --answer-column belong together: give both.")
        if found.conversations is None and found.question is None and found.caption is None:
            raise UserError(
                "Which columns hold the text? Give --caption-column, --question-column with --answer-column, "
                f"or --conversations-column; {given}."
            )
        if found.caption is not None and len(images) != 1:
            raise UserError(f"Captions need one --image-column, got {len(images)}; {given}.")
        return found

    def used(self) -> list[str]:
        """The columns to read."""
        single = (self.conversations, self.question, self.answer, self.caption, self.id)
        return [*(self.images or ()), *(name for name in single if name is not None)]


@dataclass
class HuggingFaceConverter(RowsConverter):
    """Conversations, questions or captions, and their images, of the rows of a data set."""

    kind = "hf"
    summary = "a Hugging Face data set: hub id, parquet files, or a folder of save_to_disk"
    example = """dualtoken prepare hf --input HuggingFaceM4/the_cauldron --config vqav2 --output data/vqav2
  dualtoken prepare hf --input downloads/flickr --caption-column caption --output data/flickr"""

    columns: Columns = field(default_factory=Columns)
    image_folder: Path = Path()
    licence: str = "unknown"
    options: CaptionOptions = field(default_factory=CaptionOptions)

    def __post_init__(self) -> None:
        self.image_folder = user_path(self.image_folder, "--image-folder")
        if not self.image_folder.is_dir():
            raise UserError(f"--image-folder {self.image_folder} is not a folder.")
        super().__post_init__()
        self.columns = self.columns.resolve(self.data.columns)
        # A question without an image may be about a video.
        media = () if self.columns.images else filter(is_media, self.data.columns)
        self.media = tuple(name for name in media if name not in self.columns.used())
        if self.licence == "unknown" and self.data.licence:
            self.licence = self.data.licence
        self.records_per_sample = 1 if self.columns.caption is None else self.options.records_per_sample

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        cls.add_row_arguments(parser)
        CaptionOptions.add_arguments(parser, "column")
        for name, content in (
            ("image", "the image; several, separated by commas (default: a usual name)"),
            ("question", "a question about the image"),
            ("answer", "the answer"),
            ("conversations", "turns (from, value) or (role, content)"),
            ("id", "the id of the record"),
        ):
            parser.add_argument(f"--{name}-column", help=f"column with {content}")
        folder = "folder of the files that image columns name"
        parser.add_argument("--image-folder", type=arguments.path, default=Path(), help=folder)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> HuggingFaceConverter:
        images = tuple(args.image_column.split(",")) if args.image_column else None
        names = ("conversations", "question", "answer", "caption", "id")
        columns = Columns(images, **{name: getattr(args, f"{name}_column") for name in names})
        return cls(
            **cls.row_arguments(args),
            columns=columns,
            image_folder=args.image_folder,
            licence=args.licence,
            options=CaptionOptions.from_arguments(args),
        )

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "columns": asdict(self.columns), **asdict(self.options)}

    def columns_read(self) -> list[str]:
        return [*self.columns.used(), *self.media]

    def records(self, payload: tuple[int, dict[str, Any]]) -> Iterator[tuple[Record, str]]:
        number, row = payload
        columns = self.columns
        check_no_media({name: row[name] for name in self.media})
        record_id = optional_text(row.get(columns.id), "id") if columns.id else None
        record_id = record_id or f"{self.split}-{number}"
        images = [
            self._image(value, f"{record_id} {column}")
            for column in columns.images or ()
            for value in as_list(row[column])
        ]
        if columns.caption is not None:
            if len(images) != 1:
                raise RecordError(f"a caption belongs to one image, it has {len(images) or 'no image'}")
            yield from self.options.records(record_id, images[0], caption_list(row[columns.caption]), {})
            return
        parts = [image_part(image) for image in images]
        split = self.options.images.split(record_id)
        if columns.conversations is not None:
            turns = mark_images(read_turns(row[columns.conversations]), len(parts))
            read = lambda source: image_part(self._image(source, "an image"))  # noqa: E731
            yield Record(record_id, conversation(turns, parts, read)), split
            return
        # The first one, where several people answered.
        question, answer = (
            required_text(next(iter(as_list(row[getattr(columns, name)])), None), name)
            for name in ("question", "answer")
        )
        yield Record(record_id, question_turns(parts, [(question, answer)]), {"task": "vqa"}), split

    def _image(self, value: Any, name: str) -> EncodedImage:
        """The value of an image column: bytes, {"bytes", "path"}, a data: URL, or the name of a file.

        Raises RecordError for anything else: null, a web address, a path outside of the image folder and of
        the data set.
        """
        path, options = None, self.options.images
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if isinstance(value, bytes):
            return options.stored(value, path if isinstance(path, str) else name)
        if isinstance(value, str):
            return read_image(self.image_folder, value, options)
        if value is not None or not isinstance(path, str | None):
            found = shown(value if path is None else path)
            raise RecordError(f"its image is {found}, neither bytes nor a file name")
        if path is None:
            raise RecordError("it has no image")
        if path.startswith(_REPOSITORY) or f"::{_REPOSITORY}" in path:
            import fsspec

            with fsspec.open(path, "rb") as file:  # a file inside the data set's repository or archive
                return options.stored(file.read(LARGEST_IMAGE_FILE), path)
        data = self._data_folder().absolute()
        in_data = Path(os.path.abspath(path)).is_relative_to(data)
        return read_image(data if in_data else self.image_folder, path, options)

    def _data_folder(self) -> Path:
        """The folder of the data set itself, to which absolute paths in its rows may lead."""
        local = user_path(self.path)
        if local.exists():
            return local if local.is_dir() else local.parent
        import datasets

        return Path(datasets.config.HF_CACHE_HOME)
