"""Shards of procedural scenes: questions, drawing prompts or captions, with the scene in the metadata."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..tokenizer.errors import UserError
from .convert import Accepted, Item, OutputOptions, write_items
from .records import Record, assistant, image_part, question_turns, user
from .sample_codec import EncodedSample, encode_record
from .scene_language import SKILLS, describe, scene_for_skill
from .scene_questions import questions
from .scenes import HELD_OUT_SEED, choose, random_scene, render

TASKS: tuple[str, ...] = ("vqa", "t2i", "caption")
DEFAULT_SKILLS: dict[str, float] = {
    "single_object": 0.5,
    "two_object": 0.1,
    "counting": 0.15,
    "position": 0.15,
    "color_attr": 0.1,
}
CAPTION_REQUESTS: tuple[str, ...] = ("Describe the image.", "Describe the image.", "What is in the image?")
_CAPTION_SHARE = 0.15
_CHUNK = 128


@dataclass(frozen=True)
class SceneOptions:
    """What scenes to make. `skills` are weights and concern drawing prompts (task t2i) only."""

    count: int = 10_000
    seed: int = 0
    image_size: int = 64
    task: str = "vqa"
    skills: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SKILLS))
    questions_per_image: int = 6

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise UserError(f"--task {self.task} is unknown: allowed are {', '.join(TASKS)}.")
        if self.count < 1 or self.image_size < 8 or self.questions_per_image < 1 or self.seed < 0:
            raise UserError(
                "scenes need --count >= 1, --image-size >= 8, --questions-per-image >= 1, --seed >= 0; got "
                f"{self.count}, {self.image_size}, {self.questions_per_image} and {self.seed}."
            )
        unknown = [name for name in self.skills if name not in SKILLS]
        if unknown or not sum(self.skills.values()) > 0 or min(self.skills.values()) < 0:
            raise UserError(
                f"--skills {dict(self.skills)}: give weights >= 0, not all zero, for {', '.join(SKILLS)}."
            )

    @property
    def split(self) -> str:
        """Seeds of 10⁹ and above are kept for evaluation."""
        return "heldout" if self.seed >= HELD_OUT_SEED else "train"


def scene_record(options: SceneOptions, index: int) -> Record:
    """Record `index` of these options; it depends on the seed, the index and the options only."""
    rng = np.random.default_rng((options.seed, index, TASKS.index(options.task)))
    record_id = f"scene-{options.task}-{options.seed}-{index}"
    if options.task == "t2i":
        return _drawing_record(options, record_id, rng)
    scene = random_scene(rng)
    image = image_part(render(scene, options.image_size))
    metadata: dict[str, Any] = {"task": options.task, "scene": scene.to_dict()}
    if options.task == "caption":
        request = choose(rng, CAPTION_REQUESTS)
        return Record(record_id, [user(image, request), assistant(describe(scene, rng))], metadata)
    asked = questions(scene, rng, options.questions_per_image)
    pairs = [(q.question, q.answer) for q in asked]
    kinds = [q.kind for q in asked]
    if rng.random() < _CAPTION_SHARE:
        where = int(rng.integers(len(pairs)))
        pairs[where] = (CAPTION_REQUESTS[0], describe(scene, rng))
        kinds[where] = "caption"
    return Record(record_id, question_turns([image], pairs), {**metadata, "kinds": kinds})


def _drawing_record(options: SceneOptions, record_id: str, rng: np.random.Generator) -> Record:
    names = list(options.skills)
    edges = np.cumsum([options.skills[name] for name in names])
    skill = names[min(int(np.searchsorted(edges, rng.random() * edges[-1], side="right")), len(names) - 1)]
    drawn = scene_for_skill(rng, skill)
    metadata = {"task": "t2i", "skill": skill, "spec": drawn.spec.to_dict(), "scene": drawn.scene.to_dict()}
    image = image_part(render(drawn.scene, options.image_size))
    return Record(record_id, [user(drawn.prompt), assistant(image)], metadata)


def _encode_chunk(options: SceneOptions, start: int) -> list[EncodedSample]:
    stop = min(start + _CHUNK, options.count)
    return [encode_record(scene_record(options, index)) for index in range(start, stop)]


def scene_items(options: SceneOptions, workers: int = 1) -> Iterator[Item]:
    """All records, encoded; the same ones in the same order for any number of worker processes."""
    starts = range(0, options.count, _CHUNK)
    if workers <= 1:
        for start in starts:
            yield from (Accepted(sample, options.split) for sample in _encode_chunk(options, start))
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for chunk in pool.imap(partial(_encode_chunk, options), starts):
            yield from (Accepted(sample, options.split) for sample in chunk)


def prepare_scenes(options: SceneOptions, output: OutputOptions, workers: int = 1) -> dict[str, Any]:
    """Write scenes to shards and return the manifest."""
    settings = asdict(options)
    return write_items(
        scene_items(options, workers),
        output,
        source="procedural scenes",
        licence="CC0-1.0 (generated by this package)",
        settings=settings,
        total=options.count,
    )
