"""Texts about scenes: captions, prompts for images, and GenEval's six skills as scene + prompt + spec.

The skills carry the tags of GenEval (arXiv 2310.11513): a prompt names everything that its verdict depends
on, and the specification is its machine-readable form (see `checker.check`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ...common.errors import UserError
from .scene import (
    COLOURS,
    SHAPES,
    Scene,
    SceneObject,
    choose,
    place_objects,
    random_background,
    relation,
    shuffled,
)

SKILLS: tuple[str, ...] = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
#: Skills that require exactly the objects of the prompt.
EXACT_SKILLS: tuple[str, ...] = tuple(skill for skill in SKILLS if skill != "colors")
NUMBER_WORDS: tuple[str, ...] = ("no", "one", "two", "three", "four")
RELATION_PHRASES: dict[str, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
#: Share of prompts in the bare form "a red circle"; the others are wordings as people use them.
BARE_SHARE = 0.6
_WORDINGS = (
    "draw {}",
    "draw {}",
    "please draw {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "show me {}",
    "can you draw {}?",
    "generate an image of {}",
    "create a picture of {}",
)
# With a smaller difference between the two axes, a relation looks diagonal in an image.
_POSITION_MARGIN = 0.08


@dataclass(frozen=True)
class WantedObject:
    """`count` objects of one colour and shape that an image must show."""

    shape: str
    colour: str
    count: int = 1


@dataclass(frozen=True)
class ImageSpec:
    """The objects that an image must show to satisfy its prompt.

    `relation` is the position of the first object relative to the second one (skill "position" only).
    """

    skill: str
    objects: tuple[WantedObject, ...]
    relation: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"skill": self.skill, "objects": [asdict(o) for o in self.objects], "relation": self.relation}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageSpec:
        return cls(data["skill"], tuple(WantedObject(**o) for o in data["objects"]), data.get("relation"))


class SkillScene(NamedTuple):
    """A scene, a prompt for it and the specification by which an image is checked."""

    scene: Scene
    prompt: str
    spec: ImageSpec


# --- phrases ----------------------------------------


def article(word: str) -> str:
    """'a' or 'an' before `word`."""
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    """'crosses' for 'cross', 'stars' for 'star'."""
    return shape + ("es" if shape.endswith("s") else "s")


def noun_phrase(shape: str, colour: str, count: int = 1, *, number: bool = False) -> str:
    """'a red circle', 'an orange star', 'three green stars'; with `number`, 'one red circle'."""
    if count == 1:
        return f"{'one' if number else article(colour)} {colour} {shape}"
    return f"{NUMBER_WORDS[count]} {colour} {plural(shape)}"


def capital(text: str) -> str:
    """`text` with a capital as its first letter; the others stay as they are."""
    return text[0].upper() + text[1:]


def join_phrases(phrases: list[str]) -> str:
    """'a, b and c'."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def scene_phrase(scene: Scene, rng: np.random.Generator, *, number: bool = False) -> str:
    """All objects of a scene, equal ones counted together, in random order."""
    groups = shuffled(rng, Counter((item.shape, item.colour) for item in scene.objects).items())
    return join_phrases([noun_phrase(*look, count, number=number) for look, count in groups])


def word_prompt(phrase: str, background: str, rng: np.random.Generator) -> str:
    """A prompt around `phrase`: bare in 60 % of all cases, else an everyday wording."""
    if rng.random() < BARE_SHARE:
        return phrase
    if rng.random() < 0.3:
        prompt = f"{phrase} on a {background} background"
    else:
        prompt = choose(rng, _WORDINGS).format(phrase)
    if rng.random() < 0.4:
        prompt = capital(prompt)
    return f"{prompt}." if rng.random() < 0.25 and not prompt.endswith("?") else prompt


def captions(scene: Scene, rng: np.random.Generator, count: int = 1) -> list[str]:
    """`count` independent prompts that describe the complete scene, mostly in the bare form."""
    results = []
    for _ in range(count):
        phrase = scene_phrase(scene, rng, number=rng.random() < 0.08)
        if len(scene.objects) == 2 and rng.random() < 0.3:
            phrase = _relation_phrase(*scene.objects) or phrase
        results.append(word_prompt(phrase, scene.background, rng))
    return results


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """One plain sentence for captioning: 'A red circle and two blue stars on a white background.'"""
    phrase = scene_phrase(scene, rng)
    if len(scene.objects) == 2 and rng.random() < 0.5:
        phrase = _relation_phrase(*scene.objects) or phrase
    return capital(f"{phrase} on a {scene.background} background.")


def _relation_phrase(a: SceneObject, b: SceneObject) -> str | None:
    """'a red circle above a blue star', or None when the two look alike or their relation is not clear."""
    where = relation(a, b)
    if where is None or (a.shape, a.colour) == (b.shape, b.colour):
        return None
    return f"{noun_phrase(a.shape, a.colour)} {RELATION_PHRASES[where]} {noun_phrase(b.shape, b.colour)}"


# --- skills ----------------------------------------


def scene_for_skill(rng: np.random.Generator, skill: str, grid: int | None = None) -> SkillScene:
    """A random scene that shows one GenEval skill, its prompt and its specification.

    single_object and colors: "a red circle" (they differ in the check: exactly one object, or the right
    colour of that shape); two_object: two shapes and two colours; counting: two to four identical objects;
    position: one object left or right of, above or below another; color_attr: two colours, half of the time
    on the same shape. `grid`: see `place_objects`.
    """
    if skill not in SKILLS:
        raise UserError(f"Unknown skill '{skill}': allowed are {', '.join(SKILLS)}.")
    first, second = _two_different(rng, same_shape=skill == "color_attr" and rng.random() < 0.5)
    where: str | None = None
    if skill in ("single_object", "colors"):
        wanted: tuple[WantedObject, ...] = (first,)
    elif skill == "counting":
        wanted = (WantedObject(first.shape, first.colour, 2 + int(rng.random() * 3)),)
    else:
        wanted = (first, second)
    looks = [(item.shape, item.colour) for item in wanted for _ in range(item.count)]
    objects = _place_looks(rng, looks, grid)
    if skill == "position":
        while (where := _clear_relation(*objects)) is None:
            objects = _place_looks(rng, looks, grid)
        phrase = f"{noun_phrase(*looks[0])} {RELATION_PHRASES[where]} {noun_phrase(*looks[1])}"
    else:
        number = len(looks) < 3 and rng.random() < 0.06
        phrase = join_phrases([noun_phrase(o.shape, o.colour, o.count, number=number) for o in wanted])
    scene = Scene(tuple(objects), random_background(rng))
    return SkillScene(scene, word_prompt(phrase, scene.background, rng), ImageSpec(skill, wanted, where))


def spec_for_scene(scene: Scene) -> ImageSpec:
    """The specification of an image that shows exactly the objects of `scene`, at any position."""
    groups = Counter((item.shape, item.colour) for item in scene.objects)
    wanted = tuple(WantedObject(*look, count) for look, count in groups.items())
    if len(scene.objects) == 1:
        skill = "single_object"
    else:
        skill = "counting" if len(wanted) == 1 else "two_object"
    return ImageSpec(skill, wanted)


def _two_different(rng: np.random.Generator, same_shape: bool) -> tuple[WantedObject, WantedObject]:
    """Two objects of different colours, and of different shapes unless `same_shape`."""
    colours, shapes = shuffled(rng, COLOURS), shuffled(rng, SHAPES)
    return WantedObject(shapes[0], colours[0]), WantedObject(shapes[0 if same_shape else 1], colours[1])


def _place_looks(
    rng: np.random.Generator, looks: list[tuple[str, str]], grid: int | None
) -> list[SceneObject]:
    placed = zip(looks, place_objects(rng, len(looks), grid), strict=True)
    return [SceneObject(*look, place.x, place.y, place.radius) for look, place in placed]


def _clear_relation(a: SceneObject, b: SceneObject) -> str | None:
    """As `relation`, but None as well when the other axis is nearly as far apart."""
    if abs(abs(a.x - b.x) - abs(a.y - b.y)) < _POSITION_MARGIN:
        return None
    return relation(a, b)
