"""The base class of tasks: items with exact prompts, and a pure scoring function by the official rule."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ...common.errors import UserError, one_line, shown
from ...common.json_files import is_encodable
from ...common.plugins import calling_plugin
from ..data.files import ImageSource, MissingData, values_of
from ..data.hub import HubData
from ..judges.protocols import Judges
from ..judges.replay import Verdicts
from .score import Graded, Score, accuracy_score, hidden_answers


@dataclass(frozen=True)
class Item:
    """One question or prompt.

    Args:
        id: unique in its split.
        prompt: the exact text given to the model.
        images: files or images, shown before the prompt.
        target: values for scoring, hidden from the model; JSON values only.
        choices: the answers whose likelihoods are compared, of kind "choose".
    """

    id: str
    prompt: str
    images: tuple[ImageSource, ...] = ()
    target: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoringContext:
    """Inputs of scoring other than items and predictions.

    Args:
        folder: where the generated images are, of kind "image".
        verdicts: recorded replies of a judge of answers.
        judges: models that score generated images.
    """

    folder: Path = Path()
    verdicts: Verdicts = field(default_factory=Verdicts)
    judges: Judges = field(default_factory=Judges)


class Task(ABC):
    """Base of all tasks: a subclass with `@register` in `eval/tasks/`, or in a module of a plug-in.

    A subclass defines `load`, and either `grade` (with `groups` where the table has parts) or `score`.

    Class attributes:
        name: on the command line; summary: one line for `dualtoken eval list`.
        kind: the form of predictions: "answer" (a string), "choose" (the log-likelihood of each of the
            item's choices) or "image" (names of generated images in the output folder).
        splits: name -> official number of items (None: any number); the first is the default.
        generation: settings of generation that the task's rule prescribes.
        images_per_prompt: images generated for each prompt, of kind "image".
        source: where its official files are, for messages; empty for a task that comes with the package.
        hub: the dataset on the Hugging Face hub whose files `load` can read.
        server: where predictions are scored if answers are not public; empty where all are.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    kind: ClassVar[str] = "answer"
    splits: ClassVar[Mapping[str, int | None]]
    generation: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 32}
    images_per_prompt: ClassVar[int] = 1
    source: ClassVar[str] = ""
    hub: ClassVar[HubData | None] = None
    server: ClassVar[str] = ""

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    @abstractmethod
    def load(self, root: Path | None, split: str) -> list[Item]:
        """All items of a split, in the official order, from the folder `root` of official files.

        `root` is None for data that come with the package. Images that are files stay paths. UserError for
        a missing file, naming it.
        """

    def grade(self, item: Item, prediction: Any) -> Graded:
        """The answer that the rule finds in one prediction, and its score from 0 to 1."""
        raise NotImplementedError(f"the task {self.name} defines neither grade nor score")

    def groups(self, item: Item) -> Mapping[str, Sequence[str]]:
        """The groups of the results table that an item belongs to: {"subject": ["Art"]}."""
        return {}

    def has_answer(self, item: Item) -> bool:
        """Whether an item's answer is public; used for tasks with a `server`."""
        return bool(item.target.get("answer") or item.target.get("answers"))

    def is_hidden(self, items: Sequence[Item]) -> bool:
        """Whether some answers are not public, so that only the server can score."""
        return bool(self.server) and not all(map(self.has_answer, items))

    def score(self, items: Sequence[Item], predictions: Mapping[str, Any], context: ScoringContext) -> Score:
        """The official score of `predictions`, which has one for every item id.

        By default accuracy in per cent, over all items and over each group. A function of its arguments
        only, without randomness.
        """
        if self.is_hidden(items):
            return hidden_answers(self.server)
        graded = {item.id: self._grade(item, predictions[item.id]) for item in items}
        divisions: dict[str, dict[str, Sequence[str]]] = {}
        for item in items:
            for division, names in self.groups(item).items():
                divisions.setdefault(division, {})[item.id] = names
        return accuracy_score(graded, divisions)

    def _grade(self, item: Item, prediction: Any) -> Graded:
        with calling_plugin(f"task {self.name}, item {one_line(item.id, 40)}: grade", type(self)):
            return self.grade(item, prediction)

    def items(self, root: Path | None, split: str) -> list[Item]:
        """The items of `load`, checked; everything that reads a task's data calls this.

        UserError for data that differ from the published files, whatever is wrong with them.
        """
        data = "its data" if root is None else f"the files in {shown(str(root))}"
        problem = f"{self.name} ({split}): {data} are not as they were published{self._where()}"
        with values_of(problem):  # a field of the wrong type may fail anywhere in `load`
            items = self.load(root, split)
            for item in items:
                _check_item(item, root)
            repeated = [key for key, count in Counter(item.id for item in items).items() if count > 1]
        if repeated:
            raise UserError(f"{problem}; {len(repeated)} ids occur more than once, {repeated[0]!r} first")
        if not items:
            raise UserError(f"{problem}; they hold no items")
        return items

    def image_name(self, index: int, number: int) -> str:
        """The file of generated image `number` of the item at `index`, below the output folder."""
        return f"images/{index:05}_{number:02}.png"

    def write_layout(self, items: Sequence[Item], folder: Path) -> None:
        """Write the files that an official scorer needs besides the generated images; none by default."""
        return

    def split_or_default(self, split: str | None) -> str:
        """`split`, or the default for None. UserError for a split that the task does not have."""
        if split is None:
            return next(iter(self.splits))
        if split not in self.splits:
            raise UserError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        return split

    def need_file(self, root: Path | None, *names: str) -> Path:
        """The first of `names` that exists in `root`. UserError that states which files to put where."""
        if root is None:
            or_hub = "" if self.hub is None else ", or --data hub"
            raise MissingData(
                f"{self.name} needs --data, the folder of its official files{self._where()}{or_hub}"
            )
        for name in names:
            if (root / name).exists():
                return root / name
        if not root.exists():
            raise MissingData(f"{self.name}: the folder {root} does not exist{self._where()}")
        raise MissingData(f"{self.name}: {root} holds no {' or '.join(names)}{self._where()}")

    def _where(self) -> str:
        return f" ({self.source})" if self.source else ""


def _check_item(item: Item, root: Path | None) -> None:
    """TypeError or ValueError for a prompt or a choice that is not UTF-8 text, for a blank prompt, and for an
    image outside the folder of the data (links in it are followed).
    """
    question = f"question {shown(item.id, 40)}"
    texts = {"prompt": item.prompt, **{f"choice {n}": text for n, text in enumerate(item.choices, 1)}}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{question} has the {name} {shown(text, 60)}, which is not a string")
        if name == "prompt" and not text.strip():
            raise ValueError(f"{question}: the {name} is blank")
        if not is_encodable(text) or "\0" in text:
            raise ValueError(f"{question}: the {name} is not UTF-8 text")
    for path in (image for image in item.images if isinstance(image, Path)):
        if not is_encodable(str(path)) or "\0" in str(path):
            raise ValueError(f"{question}: {shown(str(path), 60)} is not the name of an image")
        # Links are not resolved: what is linked in the folder belongs to it.
        if root is not None and not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
            raise ValueError(f"{question}: image {shown(str(path), 60)} is outside the folder of the data")
