"""Images to measure on: a folder, a tar, this package's shards, or a HF dataset, read one at a time."""

from __future__ import annotations

import contextlib
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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

#: Endings of what a tar may hold about an image.
_SIDECARS = ("json", "cls", "txt")
_TEXT_COLUMNS = ("caption", "captions", "text", "texts", "sentences")
_LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
#: Where a member's content is in its tar: (offset, length).
_Slice = tuple[int, int]


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it: the name of its class, or a class number; its captions."""

    name: str
    image: Image.Image | None
    label: str | int | None = None
    texts: tuple[str, ...] = ()
    problem: str = ""


class ImageSet(ABC):
    """Samples by number, so that processes can share them out without reading each other's.

    A sample that cannot be read comes with `image=None` and the reason in `problem`.
    """

    source: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Sample `index`, decoded."""

    def part(self, rank: int = 0, world: int = 1) -> Iterator[Sample]:
        """Every `world`-th sample from `rank` on: all of them over all ranks, none twice."""
        for index in range(rank, len(self), world):
            yield self.read(index)

    @property
    def classes(self) -> list[str] | None:
        """All class names, in the order of their numbers, where the set knows them."""
        return None


class GivenImages(ImageSet):
    """Images, paths or samples already in memory."""

    def __init__(self, images: Sequence[Any]) -> None:
        self.source = "given"
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Sample:
        given = self._images[index]
        return given if isinstance(given, Sample) else _checked(str(index), given)


class FolderImages(ImageSet):
    """All images below a folder, links followed; if there are subfolders, an image's folder is its class.

    A text file of an image's name holds its captions, one a line.
    """

    def __init__(self, folder: Path) -> None:
        self.source = str(folder)
        self._folder = folder
        self._files = [path for path in walk_files(folder) if is_image_name(path.name)]
        if not self._files:
            raise UserError(f"{folder} holds no image (.jpg, .png, .webp, … as Pillow knows them)")
        self._classes = sorted({p.parent.name for p in self._files if p.parent != folder})

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Sample:
        path = self._files[index]
        name = str(path.relative_to(self._folder))
        captions = path.with_suffix(".txt")
        try:
            texts = _lines(read_text(captions)) if captions.is_file() else ()
        except UserError as error:
            return Sample(name, None, problem=f"its caption: {error}")
        label = path.parent.name if path.parent != self._folder else None
        return _checked(name, path, label, texts)

    @property
    def classes(self) -> list[str] | None:
        return self._classes or None


class TarImages(ImageSet):
    """A webdataset tar: every image in it, with `KEY.cls` (class number or name), `KEY.txt` (captions, one a
    line) or `KEY.json` (fields "label", "caption") for `KEY.jpg`.

    The key of `a.b.jpg` is `a.b`, or `a` where nothing else has that key.
    """

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._path = path
        self._images: list[tuple[str, _Slice]] = []
        self._sidecars: dict[tuple[str, str], _Slice] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                members = [(one.name, (one.offset_data, one.size)) for one in tar if one.isfile()]
        except Exception as error:  # tarfile raises whatever it meets in a damaged header
            raise UserError(
                f"{path} cannot be read as a tar without compression ({first_line(error)})"
            ) from error
        for name, where in members:
            self._add(name, where)
        if not self._images:
            raise UserError(f"{path} holds no image (.jpg, .png, .webp, … as Pillow knows them)")

    def _add(self, name: str, where: _Slice) -> None:
        stem, _, ending = name.rpartition(".")
        if is_image_name(name):
            self._images.append((name, where))
        elif ending.lower() in _SIDECARS:
            self._sidecars[stem, ending.lower()] = where

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Sample:
        name, where = self._images[index]
        key = name.rpartition(".")[0]
        try:
            fields = self._fields(key)
            label = fields.get("label")
            if (text := self._text(key, "cls")) is not None:
                label = int(text) if text.isdecimal() and len(text) < 10 else text
            texts = _texts(fields.get("caption"))
            if (text := self._text(key, "txt")) is not None:
                texts = _lines(text)
            image = self._bytes(where)
        except (OSError, ValueError) as error:  # cut short, not UTF-8, not JSON
            return Sample(key, None, problem=first_line(error))
        return _checked(key, image, label if isinstance(label, str | int) else None, texts)

    def _fields(self, key: str) -> Mapping[str, Any]:
        text = self._text(key, "json")
        loaded = {} if text is None else parse_json(text)
        return loaded if isinstance(loaded, dict) else {}

    def _text(self, key: str, ending: str) -> str | None:
        """The text that belongs to the image of `key`; None where there is none."""
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
    """The first image of every record of this package's shards; its label and caption are the record's.

    The caption of an image to generate is its prompt; an answer to a question is not a caption.
    """

    def __init__(self, source: Path, split: str = "all") -> None:
        self.source = str(source)
        self._records = ShardDataset(source, split=split)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> Sample:
        try:
            record = self._records[index]
        except RecordError as error:
            return Sample(str(index), None, problem=first_line(error))
        image = next((part["image"] for part in record.image_parts() if "image" in part), None)
        if image is None:
            problem = "its images are stored as codes only" if record.image_parts() else "it has no image"
            return Sample(record.id, None, problem=problem)
        return _checked(record.id, image, record.metadata.get("label"), _caption(record))

    @cached_property
    def _classes(self) -> list[str]:
        labels = set()
        for index in range(len(self._records)):
            with contextlib.suppress(RecordError):  # `read` will name it
                labels.add(self._records.record(index, load_images=False).metadata.get("label"))
        return sorted(label for label in labels if isinstance(label, str))

    @property
    def classes(self) -> list[str] | None:
        return self._classes or None


class HubImages(ImageSet):
    """A HF dataset: its image column, and its class label and captions where it has them."""

    def __init__(self, dataset: Any, source: str = "dataset") -> None:
        datasets = optional_package("datasets")
        self.source = source
        self._dataset = dataset
        features = dataset.features
        pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        if not pictures:
            raise UserError(f"{source} has no column of images; it has {', '.join(features)}")
        self._image = pictures[0]
        self._label = next((name for name in _LABEL_COLUMNS if name in features), None)
        self._text = next((name for name in _TEXT_COLUMNS if name in features), None)

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> Sample:
        try:
            row = self._dataset[index]
        except Exception as error:  # it decodes the image, and raises whatever that raises
            return Sample(str(index), None, problem=first_line(error))
        label = row[self._label] if self._label else None
        return _checked(str(index), row[self._image], label, _texts(row[self._text]) if self._text else ())

    @property
    def classes(self) -> list[str] | None:
        names = getattr(self._dataset.features[self._label], "names", None) if self._label else None
        return list(names) if names else None


def open_images(source: str | Path, split: str | None = None) -> ImageSet:
    """The images of `source`.

    A folder of images, of shards, or written by HF `save_to_disk`; a tar; or "hf:OWNER/NAME" from the hub or
    its cache. `split` chooses among shards and in HF datasets. UserError for anything else.
    """
    if str(source).startswith("hf:"):
        load = optional_package("datasets").load_dataset
        return HubImages(_one_split(partial(load, str(source)[3:]), str(source)[3:], split), str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return ShardImages(path, split or "all")
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            load = optional_package("datasets").load_from_disk
            return HubImages(_one_split(partial(load, str(path)), str(path), split), str(path))
        return FolderImages(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a folder, a tar, shards, or hf:OWNER/NAME")
    if path.suffix == ".tar":
        return TarImages(path)
    raise UserError(f"{path} is neither a folder nor a .tar; unpack it, or give hf:OWNER/NAME")


def _one_split(load: Callable[[], Any], name: str, split: str | None) -> Any:
    """What a loader of HF datasets gives, or the one split of it that is meant."""
    try:
        dataset = load()
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{name} cannot be loaded as a HF dataset: {first_line(error)}") from error
    if not isinstance(dataset, Mapping):
        return dataset
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        raise UserError(f"{name} has the splits {', '.join(dataset)}; choose one with --split")
    return dataset[split]


def _checked(name: str, source: Any, label: str | int | None = None, texts: tuple[str, ...] = ()) -> Sample:
    try:
        return Sample(name, load_image(source), label, texts)
    except UserError as error:
        return Sample(name, None, problem=first_line(error))


def _caption(record: Record) -> tuple[str, ...]:
    """The prompt of an image: the user's text before an image of the assistant's."""
    generated = any(role == "assistant" and part["type"] == "image" for role, part in record.parts())
    if not generated:
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
