"""Images to measure on: a folder, a tar, this package's shards, or a HF dataset, read one at a time."""

import contextlib
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ...common.errors import UserError, first_line
from ...common.images.reading import is_image_name, load_image
from ...common.images.sources import LARGEST_IMAGE_FILE
from ...common.json_files import parse_json, read_text
from ...common.packages import optional_package
from ...common.paths import walk_files
from ...data_pipelines.records import Record, RecordError
from ...data_pipelines.shards.format import MANIFEST
from ...data_pipelines.shards.reader import ShardDataset

_NO_IMAGE = "{} holds no image (.jpg, .png, .webp, … as Pillow knows them)"
# Endings of the files that describe an image of a tar.
_SIDECARS = ("json", "cls", "txt")
_TEXT_COLUMNS = ("caption", "captions", "text", "texts", "sentences")
_LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
# Position of a member's content in its tar: (offset, length).
_Slice = tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """One image: its name, its class by name or number, its captions.

    `image` is None for one that cannot be read, with the reason in `problem`.
    """

    name: str
    image: Image.Image | None
    label: str | int | None = None
    texts: tuple[str, ...] = ()
    problem: str = ""


class ImageSet(ABC):
    """Samples by index, so that each process reads only its own.

    Args:
        source: where they are from.
        entries: what `read` takes sample `index` from.
    """

    def __init__(self, source: object, entries: Any) -> None:
        self.source = str(source)
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Sample `index`, decoded."""

    def part(self, rank: int = 0, world: int = 1) -> Iterator[Sample]:
        """Every `world`-th sample, starting at `rank`: the ranks together read each sample once."""
        for index in range(rank, len(self), world):
            yield self.read(index)

    @cached_property
    def classes(self) -> list[str] | None:
        """All class names, in the order of their numbers, where the set knows them."""
        return None


class GivenImages(ImageSet):
    """Images, paths or samples in memory."""

    def __init__(self, images: Sequence[Any]) -> None:
        super().__init__("given", images)

    def read(self, index: int) -> Sample:
        given = self._entries[index]
        return given if isinstance(given, Sample) else _loaded(str(index), given)


class FolderImages(ImageSet):
    """All images below a folder, links followed; the name of an image's subfolder is its class.

    A text file with the name of an image holds its captions, one a line.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [path for path in walk_files(folder) if is_image_name(path.name)])
        self._folder = folder
        if not self._entries:
            raise UserError(_NO_IMAGE.format(folder))

    def read(self, index: int) -> Sample:
        path = self._entries[index]
        name, captions = str(path.relative_to(self._folder)), path.with_suffix(".txt")
        try:
            texts = _lines(read_text(captions)) if captions.is_file() else ()
        except UserError as error:
            return Sample(name, None, problem=f"its caption: {error}")
        return _loaded(name, path, path.parent.name if path.parent != self._folder else None, texts)

    @cached_property
    def classes(self) -> list[str] | None:
        return sorted({path.parent.name for path in self._entries if path.parent != self._folder}) or None


class TarImages(ImageSet):
    """The images of a webdataset tar.

    Next to `KEY.jpg`, `KEY.cls` holds the class (number or name), `KEY.txt` captions, one a line, and
    `KEY.json` both (fields "label", "caption"). The key of `a.b.jpg` is `a.b`, or `a` where nothing has that
    key.
    """

    def __init__(self, path: Path) -> None:
        try:
            with tarfile.open(path, "r:") as tar:
                members = [(one.name, (one.offset_data, one.size)) for one in tar if one.isfile()]
        except Exception as error:  # of many types, for a damaged header
            raise UserError(
                f"{path} cannot be read as a tar without compression ({first_line(error)})"
            ) from error
        super().__init__(path, [(name, where) for name, where in members if is_image_name(name)])
        self._path = path
        self._sidecars: dict[tuple[str, str], _Slice] = {}
        for name, where in members:
            key, _, ending = name.rpartition(".")
            if ending.lower() in _SIDECARS:
                self._sidecars[key, ending.lower()] = where
        if not self._entries:
            raise UserError(_NO_IMAGE.format(path))

    def read(self, index: int) -> Sample:
        name, where = self._entries[index]
        key = name.rpartition(".")[0]
        try:
            loaded = {} if (text := self._text(key, "json")) is None else parse_json(text)
            fields = loaded if isinstance(loaded, dict) else {}
            label = fields.get("label")
            if (text := self._text(key, "cls")) is not None:
                label = int(text) if text.isdecimal() and len(text) < 10 else text
            texts = _texts(fields.get("caption"))
            if (text := self._text(key, "txt")) is not None:
                texts = _lines(text)
            image = self._bytes(where)
        except (OSError, ValueError) as error:  # cut short, not UTF-8, not JSON
            return Sample(key, None, problem=first_line(error))
        return _loaded(key, image, label if isinstance(label, str | int) else None, texts)

    def _text(self, key: str, ending: str) -> str | None:
        """The text file that belongs to the image of `key`; None if there is none."""
        folder, slash, file = key.rpartition("/")
        short = f"{folder}{slash}{file.partition('.')[0]}"
        where = self._sidecars.get((key, ending)) or self._sidecars.get((short, ending))
        return None if where is None else self._bytes(where).decode("utf-8-sig").strip()

    def _bytes(self, where: _Slice) -> bytes:
        offset, length = where
        if length > LARGEST_IMAGE_FILE:
            raise ValueError(f"it has {length} bytes; at most {LARGEST_IMAGE_FILE} are read")
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


class ShardImages(ImageSet):
    """The first image of every record of this package's shards, with the record's label.

    The caption of an image to generate is its prompt; an answer to a question is not a caption.
    """

    def __init__(self, source: Path, split: str = "all") -> None:
        super().__init__(source, ShardDataset(source, split=split))

    def read(self, index: int) -> Sample:
        try:
            record = self._entries[index]
        except RecordError as error:
            return Sample(str(index), None, problem=first_line(error))
        image = next((part["image"] for part in record.image_parts() if "image" in part), None)
        if image is None:
            problem = "its images are stored as codes only" if record.image_parts() else "it has no image"
            return Sample(record.id, None, problem=problem)
        return _loaded(record.id, image, record.metadata.get("label"), _caption(record))

    @cached_property
    def classes(self) -> list[str] | None:
        labels = set()
        for index in range(len(self)):
            with contextlib.suppress(RecordError):  # `read` will name it
                labels.add(self._entries.record(index, load_images=False).metadata.get("label"))
        return sorted(label for label in labels if isinstance(label, str)) or None


class HubImages(ImageSet):
    """A HF dataset: its image column, and its class label and captions where it has them."""

    def __init__(self, dataset: Any, source: str = "dataset") -> None:
        super().__init__(source, dataset)
        kind, features = optional_package("datasets").Image, dataset.features
        self._image = next((name for name in features if isinstance(features[name], kind)), None)
        if self._image is None:
            raise UserError(f"{source} has no column of images; it has {', '.join(features)}")
        self._label = next((name for name in _LABEL_COLUMNS if name in features), None)
        self._text = next((name for name in _TEXT_COLUMNS if name in features), None)

    def read(self, index: int) -> Sample:
        try:
            row = self._entries[index]
        except Exception as error:  # it decodes the image; decoders raise errors of many types
            return Sample(str(index), None, problem=first_line(error))
        label = row[self._label] if self._label else None
        return _loaded(str(index), row[self._image], label, _texts(row[self._text]) if self._text else ())

    @cached_property
    def classes(self) -> list[str] | None:
        names = getattr(self._entries.features[self._label], "names", None) if self._label else None
        return list(names) if names else None


def open_images(source: str | Path, split: str | None = None) -> ImageSet:
    """The images of `source`.

    A folder of images, of shards, or written by HF `save_to_disk`; a tar; or "hf:OWNER/NAME" from the hub or
    its cache. `split` chooses among shards and in HF datasets. UserError for anything else.
    """
    if str(source).startswith("hf:"):
        load = optional_package("datasets").load_dataset
        return HubImages(_one_split(load, str(source)[3:], split), str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return ShardImages(path, split or "all")
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            load = optional_package("datasets").load_from_disk
            return HubImages(_one_split(load, str(path), split), str(path))
        return FolderImages(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder, a tar, shards, or hf:OWNER/NAME")
    if path.suffix == ".tar":
        return TarImages(path)
    raise UserError(f"{path} is neither a folder nor a .tar; unpack it, or give hf:OWNER/NAME")


def _one_split(load: Callable[[str], Any], name: str, split: str | None) -> Any:
    """The HF dataset of a name, or the chosen one of its splits."""
    try:
        dataset = load(name)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be loaded as a HF dataset: {first_line(error)}") from error
    if not isinstance(dataset, Mapping):
        return dataset
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        raise UserError(f"{name} has the splits {', '.join(dataset)}; choose one with --split")
    return dataset[split]


def _loaded(name: str, source: Any, label: str | int | None = None, texts: tuple[str, ...] = ()) -> Sample:
    try:
        return Sample(name, load_image(source), label, texts)
    except UserError as error:
        return Sample(name, None, problem=first_line(error))


def _caption(record: Record) -> tuple[str, ...]:
    """The prompt of an image to generate: the user's first text, if the assistant's turn has an image."""
    if not any(role == "assistant" and part["type"] == "image" for role, part in record.parts()):
        return ()
    texts = (part["text"] for role, part in record.parts() if role == "user" and part["type"] == "text")
    return tuple(text for text in texts if text.strip())[:1]


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value.strip() else ()
    if isinstance(value, list | tuple):
        return tuple(item for item in value if isinstance(item, str) and item.strip())
    return ()
