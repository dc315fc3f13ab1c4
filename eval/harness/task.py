"""What a benchmark is: items, exact prompts, and a pure scoring function by the official rule."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from ...common.errors import UserError, first_line, shown
from ...common.json_files import is_encodable
from ..data.hub import HubData

ImageSource = Path | Image.Image
# How a model is asked: a free answer (prediction: str), the likelihood of given choices (prediction: one
# log-likelihood per choice), or drawings of a prompt (prediction: file names below the output folder).
KINDS = ("answer", "choose", "draw")


class MissingData(UserError):
    """The files of a benchmark or of one of its splits are not there at all."""


@dataclass(frozen=True)
class Item:
    """One question or prompt.

    `prompt` is word for word what the model is asked; `target` is what scoring needs and the model never
    sees (JSON values only). `choices` are the texts whose likelihood is compared, of kind "choose".
    """

    id: str
    prompt: str
    images: tuple[ImageSource, ...] = ()
    target: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """Figures of one benchmark.

    `metrics` by name, in the unit of the official table; None where a figure cannot be had, with the reason
    in `notes`. `headline` names the one to quote. `unparsed` counts predictions that hold no answer by the
    official rule. `correct` says for each item id what it scored, for looking at single cases.
    """

    headline: str
    metrics: Mapping[str, float | None]
    unparsed: int = 0
    notes: tuple[str, ...] = ()
    correct: Mapping[str, float] = field(default_factory=dict)


def _check_item(item: Item, root: Path | None) -> None:
    """TypeError for a question that no model can be asked, ValueError for a text that is not UTF-8 and for an
    image outside the folder of the data (links that lie in it are followed).
    """
    texts = {"prompt": item.prompt, **{f"choice {place}": text for place, text in enumerate(item.choices, 1)}}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(
                f"question {shown(item.id, 40)} has the {name} {shown(text, 60)}, which is no text"
            )
        if name == "prompt" and not text.strip():
            raise ValueError(f"question {shown(item.id, 40)}: the {name} is blank")
        if not is_encodable(text) or "\0" in text:
            raise ValueError(f"question {shown(item.id, 40)}: the {name} is not UTF-8 text")
    for image in item.images:
        if isinstance(image, Path) and not (is_encodable(str(image)) and "\0" not in str(image)):
            raise ValueError(
                f"question {shown(item.id, 40)}: {shown(str(image), 60)} is not the name of an image"
            )
        if isinstance(image, Path) and root is not None and not _is_within(image, root):
            raise ValueError(f"question {shown(item.id, 40)}: image {shown(str(image), 60)} lies elsewhere")


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path leads into a folder by its words; what is linked there belongs to it."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


class Benchmark(ABC):
    """Base of all benchmarks; a subclass in `eval/tasks/`, registered with `@register`, is all it takes.

    Class attributes:
        name: on the command line; summary: one line for `dualtoken eval list`.
        kind: "answer", "choose" or "draw".
        splits: name -> official number of items (None: any number); the first is the default.
        generation: settings of the answers or drawings that belong to the benchmark's rule.
        images_per_prompt: drawings of each prompt, of kind "draw".
        source: where its official files are, for the message when they are missing; empty for a benchmark
            that comes with the package.
        hub: the dataset on the Hugging Face hub that `load` can read as it is; None for none.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    kind: ClassVar[str] = "answer"
    splits: ClassVar[Mapping[str, int | None]]
    generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 32}
    images_per_prompt: ClassVar[int] = 1
    source: ClassVar[str] = ""
    hub: ClassVar[HubData | None] = None

    @abstractmethod
    def load(self, root: Path | None, split: str) -> list[Item]:
        """All items of a split, in the official order, from the folder `root` of official files.

        None means what comes with the package, for the benchmarks that do. Images stay paths where they are
        files. UserError for a missing file, which names it.
        """

    def items(self, root: Path | None, split: str) -> list[Item]:
        """What `load` gives, every item checked: all that reads the data of others goes through here.

        UserError for data that are not as they were published, whatever is wrong with them.
        """
        try:
            items = self.load(root, split)
            for item in items:
                _check_item(item, root)
            return items
        except UserError:
            raise
        except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            # A field of the wrong kind may fail anywhere in what a benchmark makes of its files.
            where = "its data" if root is None else f"the files in {shown(str(root))}"
            raise UserError(
                f"{self.name} ({split}): {where} are not as they were published"
                f"{self._where()}; a value is of the wrong kind ({type(error).__name__}: {first_line(error)})"
            ) from error

    @abstractmethod
    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], folder: Path) -> Score:
        """The official score of `predictions` (item id -> prediction), all items having one.

        `folder` holds the drawings, of kind "draw". No model and no randomness.
        """

    def image_name(self, index: int, number: int) -> str:
        """Where drawing `number` of the item at `index` is written, below the output folder."""
        return f"images/{index:05}_{number:02}.png"

    def write_layout(self, items: Sequence[Item], folder: Path) -> None:
        """Write what an official scorer expects beside the drawings. Nothing, unless overridden."""
        return

    def split_or_default(self, split: str | None) -> str:
        """The split meant; UserError for one that the benchmark does not have."""
        if split is None:
            return next(iter(self.splits))
        if split not in self.splits:
            raise UserError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        return split

    def need_file(self, root: Path | None, *names: str) -> Path:
        """The first of `names` that exists below `root`. UserError that says what to put where."""
        if root is None:
            or_hub = "" if self.hub is None else ", or --data hub"
            raise MissingData(
                f"{self.name} needs --data, the folder of its official files{self._where()}{or_hub}"
            )
        for name in names:
            if (root / name).exists():
                return root / name
        raise MissingData(f"{self.name}: {root} holds no {' or '.join(names)}{self._where()}")

    def _where(self) -> str:
        return f" ({self.source})" if self.source else ""
