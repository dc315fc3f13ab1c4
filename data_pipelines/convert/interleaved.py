"""Records of documents in which texts and images alternate, for the converters of OBELICS and MMC4."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...common import arguments
from ...common.arguments import integer
from ...common.errors import UserError, first_line, shown
from ...common.files import file_checksum
from ...common.outputs import Inputs
from ...common.paths import regular_file, user_path
from ...common.values import one_of, whole_number
from ...mllm.conversation.messages import Message
from ..records import MOST_IMAGES, EncodedImage, Part, Record, RecordError, assistant, image_part, user
from .row_converter import RowsConverter
from .rows import read_rows
from .samples import ImageOptions, Rejected, read_image

#: What images are: seen without a loss, or generated like the text.
IMAGES: tuple[str, ...] = ("input", "target")
#: What happens to a document with an image that cannot be used: it loses the image, or is rejected.
MISSING: tuple[str, ...] = ("skip", "reject")


@dataclass(frozen=True)
class Picture:
    """An image of a document, by what its row holds: a file name, a web address, or bytes."""

    source: Any


#: A document: its texts and images in order.
Item = str | Picture


@dataclass(frozen=True)
class InterleavedOptions:
    """How documents become records.

    Args:
        images: "input" puts each run of images into a user's turn and the texts into the assistant's, with a
            loss on text only; "target" makes the document one turn of the assistant, which learns to generate
            its images too.
        missing: "skip" leaves an unusable image out, "reject" its document.
        max_images: of a record; a document with more becomes several records.
        folder: of the image files.
        listed: a table or JSON lines with the columns `url` and `file`, for documents that name images by
            their web addresses.
        stored: of every image.
    """

    images: str = "input"
    missing: str = "skip"
    max_images: int = 16
    folder: Path = Path()
    listed: Path | None = None
    stored: ImageOptions = field(default_factory=ImageOptions)

    def __post_init__(self) -> None:
        one_of(self.images, "--images", IMAGES)
        one_of(self.missing, "--missing-images", MISSING)
        whole_number(self.max_images, "--max-images", 1, MOST_IMAGES)
        object.__setattr__(self, "folder", user_path(self.folder, "--image-folder"))
        if not self.folder.is_dir():
            raise UserError(f"--image-folder {self.folder} is not a folder.")
        if self.listed is not None:
            object.__setattr__(self, "listed", regular_file(user_path(self.listed), "--image-list"))

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        images = "input: a loss on text only; target: images are generated too (default %(default)s)"
        add("--images", choices=IMAGES, default=cls.images, help=images)
        missing = "leave an unusable image out, or reject its document (default %(default)s)"
        add("--missing-images", choices=MISSING, default=cls.missing, help=missing)
        most = "images of a record; a document with more becomes several (default %(default)s)"
        add("--max-images", type=integer(1, MOST_IMAGES), default=cls.max_images, help=most)
        add("--image-folder", type=arguments.path, default=Path(), help="folder of the image files")
        listed = "table or JSON lines with the columns url and file, from your download of the images"
        add("--image-list", type=arguments.path, help=listed)
        ImageOptions.add_arguments(parser)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> InterleavedOptions:
        stored = ImageOptions.from_arguments(args)
        where = {"folder": args.image_folder, "listed": args.image_list}
        return cls(args.images, args.missing_images, args.max_images, **where, stored=stored)

    def settings(self) -> dict[str, Any]:
        """What the records depend on, besides the files."""
        names = ("images", "missing", "max_images")
        return {**{name: getattr(self, name) for name in names}, **vars(self.stored)}

    def records(
        self, name: str, document: Sequence[Item], joined: str, metadata: Mapping[str, Any]
    ) -> Iterator[tuple[Record, str] | Rejected]:
        """(record, split) for the pieces of a document, and the images that cannot be used.

        Args:
            joined: what stands between two texts without an image between them.

        Errors:
            RecordError where no text is left, or an image is missing and its document is rejected for it.
        """
        items: list[str | EncodedImage] = []
        for number, item in enumerate(document, 1):
            if isinstance(item, str):
                items.append(item)
                continue
            try:
                items.append(self._image(item.source))
            except RecordError as error:
                if self.missing == "reject":
                    raise
                yield Rejected(f"{name}, part {number}", f"{error}; the document is kept without it")
        pieces = [piece for piece in self._pieces(items) if any(isinstance(one, str) for one in piece)]
        if not pieces:
            raise RecordError("it has no text")
        split = self.stored.split(name)
        for number, piece in enumerate(pieces):
            record_id = name if len(pieces) == 1 else f"{name}-{number}"
            yield Record(record_id, self._messages(piece, joined), {"task": "interleaved", **metadata}), split

    def _pieces(self, items: Sequence[str | EncodedImage]) -> Iterator[list[str | EncodedImage]]:
        """A document in parts of at most `max_images` images; a part begins with an image."""
        piece: list[str | EncodedImage] = []
        count = 0
        for item in items:
            if not isinstance(item, str):
                count += 1
                if count > self.max_images:
                    yield piece
                    piece, count = [], 1
            piece.append(item)
        yield piece

    def _messages(self, items: Sequence[str | EncodedImage], joined: str) -> list[Message]:
        parts: list[Part | str] = []
        for item in items:
            if not isinstance(item, str):
                parts.append(image_part(item))
            elif parts and isinstance(parts[-1], str):
                parts[-1] += joined + item
            else:
                parts.append(item)
        if self.images == "target":
            return [assistant(*parts)]
        messages: list[Message] = []
        waiting: list[Part | str] = []
        for part in parts:
            if isinstance(part, str):
                messages += [*([user(*waiting)] if waiting else []), assistant(part)]
                waiting = []
            else:
                waiting.append(part)
        return messages  # images after the last text would have nothing to predict

    def _image(self, source: Any) -> EncodedImage:
        """The image of a row: bytes, {"bytes", "path"}, a file of the folder, or one that the list names."""
        name = "an image"
        if isinstance(source, Mapping):
            data, path = source.get("bytes"), source.get("path")
            source, name = (path, name) if data is None else (data, path if isinstance(path, str) else name)
        if isinstance(source, bytes):
            return self.stored.stored(source, name)
        if isinstance(source, str) and self.listed is not None and source.startswith(("http:", "https:")):
            file = _files_by_address(self.listed).get(source)
            if file is None:
                raise RecordError(f"image {shown(source)}: not in --image-list, so its download failed")
            source = file
        return read_image(self.folder, source, self.stored)


@dataclass
class InterleavedConverter(RowsConverter):
    """Documents of texts and images in the rows of a data set; subclasses know its layout."""

    licence: str = "unknown"
    options: InterleavedOptions = field(default_factory=InterleavedOptions)

    #: The columns that every data set of this layout has, and those that are used where it has them.
    needed: tuple[str, ...] = field(default=(), init=False)
    optional: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.data.columns
        if lacking := [name for name in self.needed if name not in known]:
            raise UserError(
                f"--input {self.path} has no column {lacking[0]!r}, as {self.kind} has: the columns are "
                f"{', '.join(known)}"
            )
        self.found = [name for name in (*self.needed, *self.optional) if name in known]
        if self.licence == "unknown" and self.data.licence:
            self.licence = self.data.licence

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        cls.add_row_arguments(parser)
        InterleavedOptions.add_arguments(parser)

    @classmethod
    def fields_from(cls, args: argparse.Namespace) -> dict[str, Any]:
        """The fields that all subclasses share."""
        options = InterleavedOptions.from_arguments(args)
        return {**cls.row_arguments(args), "licence": args.licence, "options": options}

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> InterleavedConverter:
        return cls(**cls.fields_from(args))

    def columns_read(self) -> list[str]:
        return self.found

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.options.settings()}

    def inputs(self) -> Inputs:
        folder = None if self.options.folder == Path() else self.options.folder
        return {**super().inputs(), "--image-folder": folder, "--image-list": self.options.listed}

    def fingerprint(self) -> str:
        listed = self.options.listed
        return super().fingerprint() + ("" if listed is None else file_checksum(listed))


@lru_cache(maxsize=4)
def _files_by_address(path: Path) -> dict[str, str]:
    """The files of a list by web address. RecordError where it cannot be read."""
    try:
        rows = [row.fields for row in read_rows(path) if not row.problem]
    except (OSError, UserError) as error:
        raise RecordError(f"--image-list {path} cannot be read ({first_line(error)})") from error
    if rows and not {"url", "file"} <= rows[0].keys():
        raise RecordError(f"--image-list {path} has no columns url and file")
    return {str(row["url"]): str(row["file"]) for row in rows if row.get("url") and row.get("file")}
