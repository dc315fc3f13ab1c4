"""Data that the small model is measured on: sets that ship with the package, and scenes of reserved seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...data_pipelines.records import Record
from ...data_pipelines.scenes.convert import SceneOptions, scene_record
from ...data_pipelines.shards.reader import ShardDataset

T = TypeVar("T")

HELD_OUT = Path(__file__).resolve().parents[2] / "pretrained" / "nano_heldout"
#: Beside the sets: a name a line.
EMOJI_NAMES = "emoji_names.txt"
# Seeds of the held-out scenes; the second is for tuning sampling settings and takes no part in the figures.
EVALUATION_SEED, TUNING_SEED = 10**9 + 7, 10**9 + 1_000_003


@dataclass(frozen=True)
class HeldOut:
    """Data that no training has seen: sets in a folder of shards, and scenes of reserved seeds."""

    folder: Path = HELD_OUT

    def scenes(self, count: int, reworded: bool = False) -> list[Record]:
        """Scenes with questions; `reworded`: the same questions in words that no training uses."""
        options = SceneOptions(seed=EVALUATION_SEED, task="vqa", paraphrase=float(reworded))
        return [scene_record(options, index) for index in range(count)]

    def records(self, name: str) -> list[Record]:
        """All records of one set."""
        dataset = ShardDataset(self.folder / name, split="all")
        return [dataset[index] for index in range(len(dataset))]

    def emoji_names(self) -> list[str]:
        """Names of the emoji that are trained on: nothing else can be drawn by its name."""
        return (self.folder / EMOJI_NAMES).read_text(encoding="utf-8").splitlines()


@dataclass(frozen=True)
class Asked:
    """One question on its own, as a user would ask it."""

    images: list[Any]
    question: str
    answer: str
    kind: str


def single_questions(record: Record) -> Iterator[Asked]:
    """The turns of a record as questions without history; descriptions are left out."""
    images = [part["image"] for part in record.image_parts()]
    kinds = record.metadata.get("kinds") or ["question"] * (len(record.messages) // 2)
    for kind, ask, reply in zip(kinds, record.messages[::2], record.messages[1::2], strict=True):
        question = next(part["text"] for part in ask["content"] if part["type"] == "text")
        if kind != "caption":
            yield Asked(images, question, reply["content"][0]["text"], kind)


def evenly_spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, from all over them: labels and styles stand in blocks."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def emoji_prompt(name: str) -> str:
    """What an emoji is drawn by, in training as well: "sunflower emoji"."""
    return f"{name} emoji"


def named_objects(count: int) -> tuple[list[Any], list[str]]:
    """Images of one object each, and their names by colour and shape: "a red circle"."""
    records = drawing_prompts("single_object", count)
    objects = [record.metadata["scene"]["objects"][0] for record in records]
    names = [f"a {one['colour']} {one['shape']}" for one in objects]
    return [record.image_parts()[0]["image"] for record in records], names


def normalise(answer: str) -> str:
    """An answer as it is compared: without surrounding space and full stop, in lower case."""
    return answer.strip().strip(".").lower()


def drawing_prompts(skill: str, count: int, seed: int = EVALUATION_SEED) -> list[Record]:
    """Prompts of one skill, with the scenes they describe."""
    options = SceneOptions(seed=seed, task="t2i", skills={skill: 1.0})
    return [scene_record(options, index) for index in range(count)]
