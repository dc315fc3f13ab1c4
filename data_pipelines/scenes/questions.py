"""Questions about scenes with unambiguous answers: single lower-case words or digits.

A kind of question (see `KINDS`) is left out where its answer would be ambiguous, e.g. the colour of "the
circle" when there are two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import NamedTuple

import numpy as np

from .language import NUMBER_WORDS, RELATION_PHRASES, article, plural
from .scene import (
    COLOURS,
    OPPOSITE,
    RELATIONS,
    SHAPES,
    Scene,
    SceneObject,
    choose,
    choose_other,
    relation,
    shuffled,
)

# Objects closer than this along an axis are level: "above" and "below" are false for a level pair.
_LEVEL = 0.06


class Question(NamedTuple):
    """A question, its only correct answer, and its kind."""

    question: str
    answer: str
    kind: str


def questions(scene: Scene, rng: np.random.Generator, count: int | None = None) -> list[Question]:
    """Up to `count` different questions in random order, spread over as many kinds as the scene allows.

    Without `count`: one question of every kind that the scene allows. If `count` exceeds their number, kinds
    are repeated with new wordings or objects.
    """
    result: dict[str, Question] = {}
    for _ in range(1 if count is None else 4):
        for kind, ask in shuffled(rng, _KINDS.items()):
            found = ask(scene, rng)
            if found is not None and found[0] not in result:
                result[found[0]] = Question(*found, kind)
                if len(result) == count:
                    return list(result.values())
    return list(result.values())


def statements(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """'True or false: …' with "true" or "false", one of every kind of claim, in random order."""
    claims = [claim for make in _CLAIMS if (claim := make(scene, rng)) is not None]
    return [
        Question(f"True or false: {claim}.", "true" if holds else "false", "statement")
        for claim, holds in shuffled(rng, claims)
    ]


# --- names of objects ----------------------------------------


def identified(scene: Scene, attribute: str) -> list[SceneObject]:
    """The objects that their `attribute` ("colour" or "shape") alone identifies."""
    counts = Counter(getattr(item, attribute) for item in scene.objects)
    return [item for item in scene.objects if counts[getattr(item, attribute)] == 1]


def distinct_looks(scene: Scene) -> list[SceneObject]:
    """The objects that colour and shape together identify."""
    looks = Counter((item.shape, item.colour) for item in scene.objects)
    return [item for item in scene.objects if looks[item.shape, item.colour] == 1]


def _name(scene: Scene, item: SceneObject, rng: np.random.Generator) -> str:
    """'the red circle', sometimes just 'the circle' where that is enough."""
    if rng.random() < 0.25 and sum(other.shape == item.shape for other in scene.objects) == 1:
        return f"the {item.shape}"
    return f"the {item.colour} {item.shape}"


def _related_pair(scene: Scene, rng: np.random.Generator) -> tuple[SceneObject, SceneObject, str] | None:
    """Two objects that have a name of their own and whose relation is clear."""
    named = permutations(distinct_looks(scene), 2)
    pairs = [(a, b, where) for a, b in named if (where := relation(a, b)) is not None]
    return choose(rng, pairs) if pairs else None


def _claimed_relation(
    pair: tuple[SceneObject, SceneObject, str], rng: np.random.Generator
) -> tuple[str, bool]:
    """A relation to claim of the pair, and whether it holds: half of the time; else it is clearly false."""
    a, b, where = pair
    if rng.random() < 0.5:
        return where, True
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    if min(dx, dy) < _LEVEL and rng.random() < 0.4:
        return choose(rng, [r for r in RELATIONS if r not in (where, OPPOSITE[where])]), False
    return OPPOSITE[where], False


def _claimed_look(scene: Scene, rng: np.random.Generator) -> tuple[str, str, bool]:
    """A colour, a shape and whether the scene shows such an object: half of the time it does.

    Most negatives are hard: a colour or a shape of the scene in a combination that it does not show.
    """
    item = choose(rng, scene.objects)
    if rng.random() < 0.5:
        return item.colour, item.shape, True
    shown = {(other.colour, other.shape) for other in scene.objects}
    kind = rng.random()
    if kind < 0.45:
        options = [(item.colour, shape) for shape in SHAPES if (item.colour, shape) not in shown]
    elif kind < 0.9:
        options = [(colour, item.shape) for colour in COLOURS if (colour, item.shape) not in shown]
    else:
        options = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in shown]
    return *choose(rng, options), False


# --- kinds ----------------------------------------

_Asked = tuple[str, str] | None


_COLOUR_WORDINGS = ("What colour is the {}?", "What color is the {}?", "Which colour does the {} have?")
_SHAPE_WORDINGS = ("What shape is the {} object?", "What is the {} shape?", "Which shape is {}?")
_TOTAL_WORDINGS = (
    "How many objects are there?",
    "How many shapes are in the image?",
    "How many objects do you see?",
    "How many shapes are there?",
)


def _look(
    scene: Scene, rng: np.random.Generator, asked: str, named_by: str, wordings: tuple[str, ...]
) -> _Asked:
    """The attribute `asked` of an object that `named_by` alone identifies."""
    candidates = identified(scene, named_by)
    if not candidates:
        return None
    item = choose(rng, candidates)
    return choose(rng, wordings).format(getattr(item, named_by)), getattr(item, asked)


def _count_by_shape(scene: Scene, rng: np.random.Generator) -> _Asked:
    shape = choose(rng, scene.objects).shape if rng.random() < 0.75 else choose(rng, SHAPES)
    wording = choose(rng, ("How many {} are there?", "How many {} are in the image?"))
    return wording.format(plural(shape)), str(sum(item.shape == shape for item in scene.objects))


def _count_by_colour(scene: Scene, rng: np.random.Generator) -> _Asked:
    colour = choose(rng, scene.objects).colour if rng.random() < 0.75 else choose(rng, list(COLOURS))
    wording = choose(
        rng, ("How many {} objects are there?", "How many {} shapes are there?", "How many are {}?")
    )
    return wording.format(colour), str(sum(item.colour == colour for item in scene.objects))


def _relation(scene: Scene, rng: np.random.Generator) -> _Asked:
    pair = _related_pair(scene, rng)
    if pair is None:
        return None
    a, b, where = pair
    return f"Where is {_name(scene, a, rng)} relative to {_name(scene, b, rng)}?", where


def _relation_yes_no(scene: Scene, rng: np.random.Generator) -> _Asked:
    claim = _relation_claim(scene, rng, "Is {} {} {}?")
    return None if claim is None else (claim[0], "yes" if claim[1] else "no")


def _existence(scene: Scene, rng: np.random.Generator) -> _Asked:
    if rng.random() < 0.7:
        colour, shape, shown = _claimed_look(scene, rng)
        wording = choose(rng, ("Is there {}?", "Is there {} in the image?", "Do you see {}?"))
        return wording.format(f"{article(colour)} {colour} {shape}"), "yes" if shown else "no"
    by_shape = rng.random() < 0.5
    present = {item.shape if by_shape else item.colour for item in scene.objects}
    shown = rng.random() < 0.5
    options = [value for value in (SHAPES if by_shape else COLOURS) if (value in present) == shown]
    value = choose(rng, options)
    question = f"Is there a {value}?" if by_shape else f"Is there anything {value}?"
    return question, "yes" if shown else "no"


_KINDS: dict[str, Callable[[Scene, np.random.Generator], _Asked]] = {
    "colour": partial(_look, asked="colour", named_by="shape", wordings=_COLOUR_WORDINGS),
    "shape": partial(_look, asked="shape", named_by="colour", wordings=_SHAPE_WORDINGS),
    "total_count": lambda scene, rng: (choose(rng, _TOTAL_WORDINGS), str(len(scene.objects))),
    "count_by_shape": _count_by_shape,
    "count_by_colour": _count_by_colour,
    "relation": _relation,
    "relation_yes_no": _relation_yes_no,
    "existence": _existence,
    "statement": lambda scene, rng: statements(scene, rng)[0][:2],
}
KINDS: tuple[str, ...] = tuple(_KINDS)


# --- statements ----------------------------------------

_Claim = tuple[str, bool] | None


def _relation_claim(scene: Scene, rng: np.random.Generator, wording: str = "{} is {} {}") -> _Claim:
    pair = _related_pair(scene, rng)
    if pair is None:
        return None
    claimed, holds = _claimed_relation(pair, rng)
    first, second = (_name(scene, item, rng) for item in pair[:2])
    return wording.format(first, RELATION_PHRASES[claimed], second), holds


def _colour_claim(scene: Scene, rng: np.random.Generator) -> _Claim:
    candidates = identified(scene, "shape")
    if not candidates:
        return None
    item = choose(rng, candidates)
    holds = rng.random() < 0.5
    colour = item.colour if holds else choose_other(rng, COLOURS, item.colour)
    return f"the {item.shape} is {colour}", holds


def _existence_claim(scene: Scene, rng: np.random.Generator) -> _Claim:
    colour, shape, shown = _claimed_look(scene, rng)
    return f"there is {article(colour)} {colour} {shape}", shown


def _count_claim(scene: Scene, rng: np.random.Generator) -> _Claim:
    by_shape = rng.random() < 0.5
    item = choose(rng, scene.objects)
    attribute = "shape" if by_shape else "colour"
    count = sum(getattr(other, attribute) == getattr(item, attribute) for other in scene.objects)
    holds = rng.random() < 0.5
    claimed = count if holds else choose_other(rng, range(1, 5), count)
    noun = item.shape if by_shape else f"{item.colour} object"
    phrase = f"is exactly one {noun}" if claimed == 1 else f"are {NUMBER_WORDS[claimed]} {plural(noun)}"
    return f"there {phrase}", holds


_CLAIMS: tuple[Callable[[Scene, np.random.Generator], _Claim], ...] = (
    _relation_claim,
    _colour_claim,
    _existence_claim,
    _count_claim,
)
