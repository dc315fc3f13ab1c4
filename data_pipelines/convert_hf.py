"""Hugging Face datasets to shards: from the hub, from parquet files, or from a folder of `save_to_disk`.

A row becomes a record by its columns: a conversation, a question with its answer, or captions. Rows are read
in order by one process (streamed, unless a download is asked for); their images are decoded by the workers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..common.errors import UserError, first_line
from .convert import ImageOptions, Rejected, one_line
from .convert_captions import CAPTION_FIELDS, CaptionOptions, caption_list
from .convert_llava import IMAGE_MARK, check_marks, conversation, read_image, turn_text
from .convert_run import Sample, Source
from .records import EncodedImage, Record, RecordError, image_part, question_turns

CONVERSATION_COLUMNS: tuple[str, ...] = ("conversations", "messages", "texts")
IMAGE_COLUMNS: tuple[str, ...] = ("image", "images", "jpg", "png", "webp", "img")


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
        named = {key: value for key, value in asdict(self).items() if value is not None}
        for key, value in named.items():
            for name in value if key == "images" else (value,):
                if name not in known:
                    raise UserError(f"There is no column '{name}': the columns are {', '.join(known)}.")

        def usual(*names: str) -> str | None:
            return next((name for name in names if name in known), None)

        found = dict(named)
        if not {"conversations", "question", "answer", "caption"} & set(named):
            found["conversations"] = usual(*CONVERSATION_COLUMNS)
            if found["conversations"] is None and {"question", "answer"} <= set(known):
                found.update(question="question", answer="answer")
            elif found["conversations"] is None:
                found["caption"] = usual(*CAPTION_FIELDS)
        resolved = Columns(
            **{
                **found,
                "id": self.id or usual("id"),
                "images": self.images or tuple(filter(None, [usual(*IMAGE_COLUMNS)])),
            }
        )
        return resolved._checked(known)

    def _checked(self, known: Sequence[str]) -> Columns:
        given = f"the columns are {', '.join(known)}"
        if (self.question is None) != (self.answer is None):
            raise UserError("--question-column and --answer-column belong together: give both.")
        if self.conversations is None and self.question is None and self.caption is None:
            raise UserError(
                "Which columns hold the text? Give --caption-column, --question-column with --answer-column, "
                f"or --conversations-column; {given}."
            )
        if self.caption is not None and len(self.images or ()) != 1:
            raise UserError(f"Captions need one --image-column, got {len(self.images or ())}; {given}.")
        return self

    def used(self) -> list[str]:
        """The columns to read."""
        single = (self.conversations, self.question, self.answer, self.caption, self.id)
        return [*(self.images or ()), *(name for name in single if name is not None)]


@dataclass(frozen=True)
class Dataset:
    """An opened data set: rows by `datasets`, files that cannot be read, and facts for the manifest."""

    rows: Any
    damaged: list[Rejected]
    total: int | None
    licence: str | None
    fingerprint: str


@dataclass
class HuggingFaceSource(Source):
    """The rows of one split of a data set: a hub id, a parquet, JSON, CSV or Arrow file, or a folder."""

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
        self.name = self.path
        self._data: Dataset | None = open_dataset(
            self.path, self.config, self.split, self.revision, self.streaming
        )
        known = self._data.rows.column_names
        if known is None:
            known = list(next(iter(self._data.rows), {}))
        self.columns = self.columns.resolve(known)
        if self.licence == "unknown" and self._data.licence:
            self.licence = self._data.licence
        self.records_per_sample = 1 if self.columns.caption is None else self.options.records_per_sample

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None}  # workers get rows, not the data set

    def settings(self) -> dict[str, Any]:
        where = {"config": self.config, "split": self.split, "revision": self.revision}
        return {**where, "columns": asdict(self.columns), **asdict(self.options)}

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
        rows = self._data.rows.select_columns(self.columns.used())
        try:
            for number, row in enumerate(rows.skip(number), start=number):  # noqa: B020
                yield Sample(f"row {number}", (number, row))
        except UserError:
            raise
        except Exception as error:  # Arrow, the hub and the file systems have no common exception
            raise UserError(
                f"{self.path} cannot be read behind row {number} ({type(error).__name__}: "
                f"{first_line(error)}): finished shards are kept, give the same command again to go on."
            ) from error

    def records(self, payload: tuple[int, dict[str, Any]]) -> Iterator[tuple[Record, str]]:
        number, row = payload
        columns = self.columns
        given = row.get(columns.id) if columns.id else None
        name = str(given) if given is not None else f"{self.split}-{number}"
        limits = self.options.images
        images = [
            stored_value(value, f"{name} {column}", self.image_folder, limits)
            for column in columns.images or ()
            for value in _as_list(row[column])
        ]
        if columns.caption is not None:
            if len(images) != 1:
                raise RecordError(f"a caption belongs to one image, it has {len(images)}")
            yield from self.options.records(name, images[0], caption_list(row[columns.caption]), {})
            return
        parts = [image_part(image) for image in images]
        if columns.conversations is not None:
            turns = mark_images(unified_turns(row[columns.conversations]), len(parts))
            yield Record(name, conversation(turns, parts)), limits.split(name)
            return
        assert columns.question is not None
        assert columns.answer is not None
        pairs = [(_text(row[columns.question], "question"), _text(row[columns.answer], "answer"))]
        yield Record(name, question_turns(parts, pairs), {"task": "vqa"}), limits.split(name)


# --- opening ----------------------------------------


def open_dataset(path: str, config: str | None, split: str, revision: str | None, streaming: bool) -> Dataset:
    """Open one split, images left encoded. Raises UserError when `datasets` cannot."""
    import datasets

    try:
        if Path(path).exists():
            return _open_local(Path(path), config, split)
        facts = f"{path} {config} {split} {revision}"
        rows = datasets.load_dataset(path, config, split=split, revision=revision, streaming=streaming)
        known = (rows.info.splits or {}).get(split)
        total = known.num_examples if known is not None else None
        return Dataset(_undecoded(rows), [], total or None, rows.info.license, facts)
    except UserError:
        raise
    except Exception as error:  # as many kinds of exceptions as there are file systems and formats
        raise UserError(
            f"--input {path} (config {config}, split {split}) cannot be opened as a Hugging Face data set: "
            f"{first_line(error)}"
        ) from error


def _open_local(path: Path, config: str | None, split: str) -> Dataset:
    import datasets

    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise UserError(f"{path} has no split '{split}': it has {', '.join(saved)}.")
            saved = saved[split]
        return Dataset(_undecoded(saved), [], len(saved), saved.info.license, _file_facts([path], path))
    if files := parquet_files(path, split):
        return _open_parquet(files, path, split)
    if path.is_dir():
        rows = datasets.load_dataset(str(path), config, split=split, streaming=True)
        every = sorted(file for file in path.rglob("*") if file.is_file())
        return Dataset(_undecoded(rows), [], None, rows.info.license, _file_facts(every, path))
    kind = {".jsonl": "json", ".tsv": "csv"}.get(path.suffix, path.suffix.removeprefix("."))
    more = {"sep": "\t"} if path.suffix == ".tsv" else {}
    rows = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=True, **more)
    return Dataset(_undecoded(rows), [], None, None, _file_facts([path], path.parent))


def parquet_files(path: Path, split: str) -> list[Path]:
    """The parquet files at `path`: those whose names tell the split, or all when none does."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    files = sorted(path.rglob("*.parquet"))
    named = [file for file in files if split in re.split(r"[-_./]", file.relative_to(path).as_posix())]
    return named or files


def _open_parquet(files: list[Path], path: Path, split: str) -> Dataset:
    import datasets
    import pyarrow
    from pyarrow import parquet

    whole: list[str] = []
    damaged: list[Rejected] = []
    total = 0
    for file in files:
        try:
            total += parquet.read_metadata(file).num_rows
            whole.append(str(file))
        except (pyarrow.ArrowException, OSError) as error:
            damaged.append(Rejected(file.name, f"damaged parquet file ({one_line(error)[:100]})"))
    if not whole:
        raise UserError(f"No parquet file in {path} can be read: {damaged[0].sample}: {damaged[0].reason}.")
    rows = datasets.load_dataset("parquet", data_files={split: whole}, split=split, streaming=True)
    return Dataset(_undecoded(rows), damaged, total, None, _file_facts(files, path))


def _undecoded(rows: Any) -> Any:
    """Rows as a stream whose images stay the bytes of their files."""
    import datasets

    stream = rows.to_iterable_dataset() if isinstance(rows, datasets.Dataset) else rows
    return stream.decode(False)


def _file_facts(files: Sequence[Path], root: Path) -> str:
    every = [inner for file in files for inner in (sorted(file.rglob("*")) if file.is_dir() else [file])]
    facts = "\n".join(f"{file.name} {file.stat().st_size}" for file in every if file.is_file())
    return hashlib.sha256(f"{root.name}\n{facts}".encode()).hexdigest()


# --- values of columns ----------------------------------------


def stored_value(value: Any, name: str, folder: Path, options: ImageOptions) -> EncodedImage:
    """The value of an image column: bytes, {"bytes", "path"}, or the name of a file. Raises RecordError."""
    path: str | None = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, str):
        return read_image(folder, value, options)
    if isinstance(value, bytes):
        return options.stored(value, path or name)
    if path is None:
        raise RecordError("it has no image")
    if Path(path).is_file():
        return options.stored(Path(path).read_bytes(), Path(path).name)
    import fsspec

    with fsspec.open(path, "rb") as file:  # a file inside the data set's repository or archive
        return options.stored(file.read(), path)


def unified_turns(value: Any) -> list[Any]:
    """Turns of a conversation column: a list, the same as JSON text, or pairs {"user", "assistant"}."""
    turns = json.loads(value) if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise RecordError(f"a conversation is a list of turns, got {type(turns).__name__}")
    unified: list[Any] = []
    for turn in turns:
        if isinstance(turn, dict) and "user" in turn and "assistant" in turn:
            unified += [{"role": role, "content": turn[role]} for role in ("user", "assistant")]
        else:
            unified.append(turn)
    return unified


def mark_images(turns: list[Any], num_images: int) -> list[Any]:
    """The turns, with the images before the first question when no turn says where they belong."""
    texts = [turn_text(turn) for turn in turns]
    if num_images and not any(IMAGE_MARK in text for text in texts):
        first = next((n for n, turn in enumerate(turns) if _is_user(turn)), None)
        if first is None:
            raise RecordError("no turn of the user that its images could stand in")
        marked = {"role": "user", "content": IMAGE_MARK * num_images + texts[first]}
        turns = [*turns[:first], marked, *turns[first + 1 :]]
    check_marks(turns, num_images)
    return turns


def _is_user(turn: Any) -> bool:
    return (turn.get("from") or turn.get("role")) in ("human", "user")


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [item for item in value if item is not None]
    return [] if value is None else [value]


def _text(value: Any, what: str) -> str:
    """A text, or the first of several."""
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, str) or not first.strip():
        raise RecordError(f"its {what} is empty or no text")
    return first.strip()
