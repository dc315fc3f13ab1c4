"""Shards of procedural scenes: questions, prompts, captions or dialogues, with scenes in the metadata."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from ...common.arguments import integer, seed, share
from ...common.errors import UserError, shown
from ...common.values import finite_number, seed_number, whole_number
from ..convert.converter import Converter
from ..convert.samples import Sample
from ..records import MOST_RECORDS, Message, Record, assistant, image_part, question_turns, user
from .dialogues import Words, random_dialogue
from .language import SKILLS, describe, scene_for_skill
from .questions import Question, questions
from .scene import HELD_OUT_SEED, MIN_GRID, Scene, choose, random_scene, render

TASKS: tuple[str, ...] = ("vqa", "t2i", "caption", "chat")
DEFAULT_SKILLS: dict[str, float] = {
    "single_object": 0.5,
    "two_object": 0.1,
    "counting": 0.15,
    "position": 0.15,
    "color_attr": 0.1,
}
CAPTION_REQUESTS: tuple[str, ...] = ("Describe the image.", "Describe the image.", "What is in the image?")
_CAPTION_SHARE = 0.15
#: The longest side of an image, and the most turns of a record.
MOST_SIDE = 4096
MOST_TURNS = 1000


@dataclass(frozen=True)
class SceneOptions:
    """Settings of generated records.

    skills: weights of the skills of prompts (task "t2i"). paraphrase: share of questions and prompts that are
    reworded; scenes, answers and the other questions stay as they are. turns: maximum number of turns of a
    dialogue (task "chat"). grid: cells per side of a layout for generated images (`place_objects`).
    """

    count: int = 10_000
    seed: int = 0
    image_size: int = 64
    task: str = "vqa"
    skills: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SKILLS))
    questions_per_image: int = 6
    paraphrase: float = 0.0
    turns: int = 5
    grid: int | None = None

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"--task {shown(self.task)} is unknown: allowed are {', '.join(TASKS)}.")
        whole_number(self.count, "--count", 1, MOST_RECORDS)
        seed_number(self.seed, "--seed")
        whole_number(self.image_size, "--image-size", 8, MOST_SIDE)
        whole_number(self.questions_per_image, "--questions-per-image", 1, MOST_TURNS)
        whole_number(self.turns, "--turns", 2, MOST_TURNS)
        finite_number(self.paraphrase, "--paraphrase", 0.0, 1.0)
        if self.grid is not None:
            whole_number(self.grid, "--grid", MIN_GRID, MOST_SIDE)
            if self.task not in ("t2i", "chat"):
                raise UserError(
                    f"--grid {self.grid} with --task {self.task}: a grid needs --task t2i or chat."
                )
        for name, weight in self.skills.items():
            finite_number(weight, f"--skills {name}", 0.0)
        unknown = [name for name in self.skills if name not in SKILLS]
        if unknown or not 0 < sum(self.skills.values()) < float("inf"):
            raise UserError(
                f"--skills {shown(dict(self.skills))}: weights >= 0, not all zero, for {', '.join(SKILLS)}."
            )

    @property
    def split(self) -> str:
        """Seeds of 10⁹ and above are reserved for evaluation."""
        return "heldout" if self.seed >= HELD_OUT_SEED else "train"

    @property
    def words(self) -> Words:
        """The rewording; held-out seeds use wordings that never occur in training."""
        return Words(self.paraphrase, reserved=self.split == "heldout")


def scene_record(options: SceneOptions, index: int) -> Record:
    """Record `index`, a pure function of the options and the index."""
    key = (options.seed, index, TASKS.index(options.task))
    rng, other_rng = np.random.default_rng(key), np.random.default_rng((*key, 1))
    record_id = f"scene-{options.task}-{options.seed}-{index}"
    if options.task == "t2i":
        return _prompt_record(options, record_id, rng, other_rng)
    if options.task == "chat":
        return _dialogue_record(options, record_id, rng)
    scene = random_scene(rng)
    image = image_part(render(scene, options.image_size))
    metadata: dict[str, Any] = {"task": options.task, "scene": scene.to_dict()}
    if options.task == "caption":
        asked = [Question(choose(rng, CAPTION_REQUESTS), describe(scene, rng), "caption")]
    else:
        asked = questions(scene, rng, options.questions_per_image)
        if rng.random() < _CAPTION_SHARE:
            where = int(rng.integers(len(asked)))
            asked[where] = Question(CAPTION_REQUESTS[0], describe(scene, rng), "caption")
        metadata["kinds"] = [question.kind for question in asked]
    pairs = [(options.words.question(question, other_rng), question.answer) for question in asked]
    return Record(record_id, question_turns([image], pairs), metadata)


def _prompt_record(
    options: SceneOptions, record_id: str, rng: np.random.Generator, other_rng: np.random.Generator
) -> Record:
    names = list(options.skills)
    edges = np.cumsum([options.skills[name] for name in names])
    skill = names[min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(names) - 1)]
    target = scene_for_skill(rng, skill, options.grid)
    metadata = {"task": "t2i", "skill": skill, "spec": target.spec.to_dict(), "scene": target.scene.to_dict()}
    image = image_part(render(target.scene, options.image_size))
    prompt = options.words.prompt(target.prompt, target.spec, target.scene.background, other_rng)
    return Record(record_id, [user(prompt), assistant(image)], metadata)


def _dialogue_record(options: SceneOptions, record_id: str, rng: np.random.Generator) -> Record:
    """`metadata`: "scenes" of the images in order, "kinds" and "specs" (None for text answers) of the turns.

    "ordered": the turns build on each other and must not be shuffled.
    """

    def image(scene: Scene) -> dict[str, Any]:
        scenes.append(scene.to_dict())
        return image_part(render(scene, options.image_size))

    scenes: list[dict[str, Any]] = []
    dialogue = random_dialogue(rng, options.turns, options.words, options.grid)
    messages: list[Message] = []
    for turn in dialogue.turns:
        first = [image(dialogue.shown)] if dialogue.shown and not messages else []
        answer = turn.answer if isinstance(turn.answer, str) else image(turn.answer)
        messages += [user(*first, turn.ask), assistant(answer)]
    metadata = {
        "task": "chat",
        "form": dialogue.form,
        "ordered": True,
        "kinds": [turn.kind for turn in dialogue.turns],
        "scenes": scenes,
        "specs": [turn.spec.to_dict() if turn.spec else None for turn in dialogue.turns],
    }
    return Record(record_id, messages, metadata)


class SceneConverter(Converter):
    """Generated scenes: a sample is the index of its record."""

    kind = "scenes"
    summary = "generate procedural scenes (nothing is downloaded)"
    example = "dualtoken prepare scenes --output data/scenes-vqa --count 20000 --task vqa"
    name = "procedural scenes"
    licence = "CC0-1.0 (generated by this package)"

    def __init__(self, options: SceneOptions) -> None:
        self.options = options

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        defaults = SceneOptions()

        def add(name: str, type: Callable[[str], Any], help: str, **options: Any) -> None:
            default = getattr(defaults, name.removeprefix("--").replace("-", "_"))
            parser.add_argument(name, type=type, default=default, help=help, **options)

        add("--count", integer(1), "number of records (default %(default)s)")
        add("--seed", seed, "default %(default)s; 10**9 and above are reserved for evaluation")
        add("--image-size", integer(8), "pixels (default %(default)s)")
        tasks = "questions, prompts for images, captions or dialogues of several turns (default %(default)s)"
        add("--task", str, tasks, choices=TASKS)
        skills = ",".join(f"{name}={weight}" for name, weight in DEFAULT_SKILLS.items())
        weights = "weights of prompts for images (default %(default)s)"
        parser.add_argument("--skills", default=skills, help=weights)
        add("--questions-per-image", integer(1), "turns of one vqa record (default %(default)s)")
        share_help = "share of questions and prompts that are reworded (default %(default)s)"
        add("--paraphrase", share, share_help, metavar="SHARE")
        add("--turns", integer(2), "maximum number of turns of one chat record (default %(default)s)")
        layout = "cells per side of a layout for generated images, 3 × 3 per object (default: no layout)"
        add("--grid", integer(8), layout)

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> SceneConverter:
        given = {one.name: getattr(args, one.name) for one in fields(SceneOptions)}
        return cls(SceneOptions(**{**given, "skills": parse_weights(args.skills)}))

    def settings(self) -> dict[str, Any]:
        return asdict(self.options)

    def total(self) -> int:
        return self.options.count

    def samples(self) -> Iterator[Sample]:
        return (Sample(f"scene {index}", index) for index in range(self.options.count))

    def records(self, payload: int) -> Iterator[tuple[Record, str]]:
        yield scene_record(self.options, payload), self.options.split


def parse_weights(text: str) -> dict[str, float]:
    """'single_object=0.7,position=0.3' as a dictionary."""
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, _, weight = item.partition("=")
        try:
            weights[name.strip()] = float(weight or 1.0)
        except ValueError:
            raise UserError(
                f"--skills {shown(item)}: expected name=weight, e.g. single_object=0.7."
            ) from None
    return weights
