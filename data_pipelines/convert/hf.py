"""Hugging Face datasets to shards: from the hub, from parquet files, or from a folder of `save_to_disk`.

A row becomes a record by its columns: a conversation, a question with its answer, or captions. Rows are read
in order by one process (streamed, unless a download is asked for); their images are decoded by the workers.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...common import arguments
from ...common.errors import UserError, first_line, one_line, shown
from ...common.outputs import Inputs
from ...common.paths import user_path
from ...mllm.conversation.messages import is_media
from ..records import EncodedImage, Part, Record, RecordError, image_part, question_turns
from .captions import CAPTION_FIELDS, CaptionOptions, caption_list
from .converter import Converter
from .foreign_values import as_list, needed_text, optional_text
from .hf_datasets import Dataset, open_dataset
from .samples import LARGEST_IMAGE_FILE, ImageOptions, Rejected, Sample, read_image
from .turns import check_no_media, conversation, mark_images, read_turns

CONVERSATION_COLUMNS: tuple[str, ...] = ("conversations", "messages", "texts")
IMAGE_COLUMNS: tuple[str, ...] = ("image", "images", "jpg", "png", "webp", "img")
#: How `datasets` names files of a repository on the hub.
_REPOSITORY = "hf://"


@dataclass(frozen=True)
class Columns:
    """Names of columns; None takes a usual name where the data set has it.

    `images` may be several columns, of one image or a list of images each.
    """

    images: tuple[str, ...] | None = None
    conversations: str | None = None
    question: str | None = None
    answer: str | None = None
    caption: str | None = None
    id: str | None = None

    def resolve(self, known: Sequence[str]) -> Columns:
        """The same with names that `known` has. Raises UserError when none of the three tasks is possible."""
        for name in self.used():
            if name not in known:
                raise UserError(f"There is no column '{name}': the columns are {', '.join(known)}.")

        def usual(*names: str) -> str | None:
            return next((name for name in names if name in known), None)

        found = replace(
            self,
            id=self.id or usual("id"),
            images=self.images or tuple(filter(None, [usual(*IMAGE_COLUMNS)])),
        )
        if (self.conversations, self.question, self.answer, self.caption) == (None,) * 4:
            if conversations := usual(*CONVERSATION_COLUMNS):
                found = replace(found, conversations=conversations)
            elif {"question", "answer"} <= set(known):
                found = replace(found, question="question", answer="answer")
            else:
                found = replace(found, caption=usual(*CAPTION_FIELDS))
        found._require_a_task(
            f"the columns are {', '.join(known)}" if known else "the first rows show no columns"
        )
        return found

    def _require_a_task(self, given: str) -> None:
        if (self.question is None) != (self.answer is None):
            raise UserError("--question-column and --answer-column belong together: give both.")
        if self.conversations is None and self.question is None and self.caption is None:
            raise UserError(
                "Which columns hold the text? Give --caption-column, --question-column with --answer-column, "
                f"or --conversations-column; {given}."
            )
        if self.caption is not None and len(self.images or ()) != 1:
            raise UserError(f"Captions need one --image-column, got {len(self.images or ())}; {given}.")

    def used(self) -> list[str]:
        """The columns to read."""
        single = (self.conversations, self.question, self.answer, self.caption, self.id)
        return [*(self.images or ()), *(name for name in single if name is not None)]


@dataclass(frozen=True)
class Folders:
    """Where images may lie that rows name: the user's folder for names, the data set's own for its paths."""

    images: Path
    data: tuple[Path, ...] = ()

    def of(self, path: str) -> Path:
        """The folder in which a path is allowed, if in any; `images` otherwise."""
        absolute = Path(os.path.abspath(path))
        return next((one for one in self.data if absolute.is_relative_to(one.absolute())), self.images)


@dataclass
class HuggingFaceConverter(Converter):
    """The rows of one split of a data set: a hub id, a parquet, JSON, CSV or Arrow file, or a folder."""

    kind = "hf"
    summary = "a Hugging Face data set: hub id, parquet files, or a folder of save_to_disk"
    example = """dualtoken prepare hf --input HuggingFaceM4/the_cauldron --config vqav2 --output data/vqav2
  dualtoken prepare hf --input downloads/flickr --caption-column caption --output data/flickr"""

    path: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = True
    columns: Columns = field(default_factory=Columns)
    image_folder: Path = Path()
    licence: str = "unknown"
    options: CaptionOptions = field(default_factory=CaptionOptions)

    def __post_init__(self) -> None:
        self.name = one_line(self.path)
        self.image_folder = user_path(self.image_folder, "--image-folder")
        if not self.image_folder.is_dir():
            raise UserError(f"--image-folder {self.image_folder} is not a folder.")
        self._data: Dataset | None = open_dataset(
            self.path, self.config, self.split, self.revision, self.streaming
        )
        self.columns = self.columns.resolve(self._data.columns)
        # Without images, what is asked about may be a video.
        media = () if self.columns.images else filter(is_media, self._data.columns)
        self.media = tuple(name for name in media if name not in self.columns.used())
        if self.licence == "unknown" and self._data.licence:
            self.licence = self._data.licence
        self.records_per_sample = 1 if self.columns.caption is None else self.options.records_per_sample

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--input", required=True, help="hub id, folder, or parquet, JSON or CSV file")
        parser.add_argument("--config", help="configuration (subset) of the data set")
        parser.add_argument("--split", default="train", help="split to read (default %(default)s)")
        parser.add_argument("--revision", help="commit, branch or tag on the hub")
        parser.add_argument("--no-streaming", action="store_true", help="download all of it first")
        CaptionOptions.add_arguments(parser, "column")
        for name, what in (
            ("image", "with the image; several, by commas (default: usual)"),
            ("question", "with a question about the image"),
            ("answer", "with its answer"),
            ("conversations", "with turns (from, value) or (role, content)"),
            ("id", "with a name for the record"),
        ):
            parser.add_argument(f"--{name}-column", help=f"column {what}")
        parser.add_argument(
            "--image-folder",
            type=arguments.path,
            default=Path(),
            help="where columns that name files are looked up",
        )

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> HuggingFaceConverter:
        images = tuple(args.image_column.split(",")) if args.image_column else None
        names = ("conversations", "question", "answer", "caption", "id")
        columns = Columns(images, **{name: getattr(args, f"{name}_column") for name in names})
        return cls(
            args.input,
            args.config,
            args.split,
            args.revision,
            streaming=not args.no_streaming,
            columns=columns,
            image_folder=args.image_folder,
            licence=args.licence,
            options=CaptionOptions.from_arguments(args),
        )

    def settings(self) -> dict[str, Any]:
        where = {"config": self.config, "split": self.split, "revision": self.revision}
        return {**where, "columns": asdict(self.columns), **asdict(self.options)}

    def inputs(self) -> Inputs:
        local = user_path(self.path)
        return {"--input": local if local.exists() else None}

    def fingerprint(self) -> str:
        assert self._data is not None
        return self._data.fingerprint

    def total(self) -> int | None:
        assert self._data is not None
        return None if self._data.total is None else self._data.total + len(self._data.damaged)

    def samples(self) -> Iterator[Sample | Rejected]:
        return self.samples_from(0)

    def samples_from(self, start: int) -> Iterator[Sample | Rejected]:
        assert self._data is not None
        yield from self._data.damaged[start:]
        number = max(0, start - len(self._data.damaged))
        try:
            rows = self._data.read([*self.columns.used(), *self.media], number)
            for number, row in enumerate(rows, start=number):  # noqa: B020
                name = f"row {number}"
                yield Rejected(name, row) if isinstance(row, str) else Sample(name, (number, row))
        except UserError:
            raise
        except Exception as error:  # Arrow, the hub and the file systems have no common exception
            raise UserError(
                f"{self.path} cannot be read after row {number} ({type(error).__name__}: "
                f"{first_line(error)}): finished shards are kept, give the same command again to continue."
            ) from error

    def records(self, payload: tuple[int, dict[str, Any]]) -> Iterator[tuple[Record, str]]:
        number, row = payload
        columns = self.columns
        check_no_media({name: row[name] for name in self.media})
        name = optional_text(row.get(columns.id), "id") if columns.id else None
        name = name or f"{self.split}-{number}"
        limits, folders = self.options.images, self._folders()
        images = [
            stored_value(value, f"{name} {column}", folders, limits)
            for column in columns.images or ()
            for value in as_list(row[column])
        ]
        if columns.caption is not None:
            if len(images) != 1:
                raise RecordError(f"a caption belongs to one image, it has {len(images) or 'no image'}")
            yield from self.options.records(name, images[0], caption_list(row[columns.caption]), {})
            return
        parts = [image_part(image) for image in images]
        if columns.conversations is not None:
            turns = mark_images(read_turns(row[columns.conversations]), len(parts))
            yield Record(name, conversation(turns, parts, self._read_part)), limits.split(name)
            return
        assert columns.question is not None
        assert columns.answer is not None
        # Of several answers, as people gave them, the first.
        question, answer = (
            needed_text(next(iter(as_list(row[column])), None), what)
            for column, what in ((columns.question, "question"), (columns.answer, "answer"))
        )
        record = Record(name, question_turns(parts, [(question, answer)]), {"task": "vqa"})
        yield record, limits.split(name)

    def _read_part(self, name: Any) -> Part:
        return image_part(stored_value(name, "an image", self._folders(), self.options.images))

    def _folders(self) -> Folders:
        local = user_path(self.path)
        if local.exists():
            return Folders(self.image_folder, (local if local.is_dir() else local.parent,))
        import datasets

        return Folders(self.image_folder, (Path(datasets.config.HF_CACHE_HOME),))


# --- values of columns ----------------------------------------


def stored_value(value: Any, name: str, folders: Folders, options: ImageOptions) -> EncodedImage:
    """The value of an image column: bytes, {"bytes", "path"}, a data: URL, or the name of a file.

    Raises RecordError for anything else: null, a web address, a path outside of `folders`.
    """
    path: Any = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes):
        return options.stored(value, path if isinstance(path, str) else name)
    if isinstance(value, str):
        return read_image(folders.images, value, options)
    if value is not None or not isinstance(path, str | None):
        raise RecordError(f"its image is {shown(value if path is None else path)}, neither bytes nor a name")
    if path is None:
        raise RecordError("it has no image")
    if path.startswith(_REPOSITORY) or f"::{_REPOSITORY}" in path:
        import fsspec

        with fsspec.open(path, "rb") as file:  # a file inside the data set's repository or archive
            return options.stored(file.read(LARGEST_IMAGE_FILE), path)
    return read_image(folders.of(path), path, options)
