"""Dialogues about scenes whose turns refer to earlier ones: pronouns, short follow-ups, images.

Three forms: "look" (several questions about a shown image), "draw_then_ask" (a generated image, questions
about it, and the image again with a change), "ask_then_draw" (questions about a shown image, then an image
of something in it). Answers follow from the scenes, and generated images have specifications, so that both
can be checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from .language import (
    EXACT_SKILLS,
    NUMBER_WORDS,
    ImageSpec,
    article,
    capital,
    describe,
    noun_phrase,
    plural,
    scene_for_skill,
    spec_for_scene,
)
from .questions import Question, distinct_looks, identified, questions
from .scene import (
    COLOURS,
    OPPOSITE,
    SHAPES,
    Scene,
    SceneObject,
    choose,
    choose_other,
    place_objects,
    random_scene,
    relation,
    shuffled,
)
from .wordings import RELATION_WORDS, reword_prompt, reword_question

FORMS: tuple[str, ...] = ("look", "draw_then_ask", "ask_then_draw")
_FORM_SHARES = (0.4, 0.35, 0.25)


class Turn(NamedTuple):
    """A user's request and the answer: a string, or the scene of an image with its specification.

    kind: one of `questions.KINDS`, "caption", "draw", or "follow_up", which refers to earlier turns.
    """

    ask: str
    answer: str | Scene
    kind: str
    spec: ImageSpec | None = None


class Dialogue(NamedTuple):
    """A dialogue. `shown`: the scene of the image in the user's first turn, if any."""

    form: str
    shown: Scene | None
    turns: list[Turn]


class Words(NamedTuple):
    """The share of questions and prompts that are reworded, and whether with reserved wordings."""

    share: float = 0.0
    reserved: bool = False

    def question(self, asked: Question, rng: np.random.Generator) -> str:
        if rng.random() < self.share:
            return reword_question(asked.question, asked.kind, rng, self.reserved)
        return asked.question

    def prompt(self, prompt: str, spec: ImageSpec, background: str, rng: np.random.Generator) -> str:
        if rng.random() < self.share:
            return reword_prompt(spec, rng, background, self.reserved)
        return prompt


PLAIN = Words()


def random_dialogue(
    rng: np.random.Generator, count: int = 5, words: Words = PLAIN, grid: int | None = None
) -> Dialogue:
    """A dialogue of two to `count` turns. `grid` lays out generated images, see `place_objects`."""
    form = FORMS[int(np.searchsorted(np.cumsum(_FORM_SHARES), rng.random(), side="right"))]
    length = 2 + int(rng.random() * (count - 1))
    if form == "draw_then_ask":
        return Dialogue(form, None, _draw_then_ask(rng, length, words, grid))
    scene = random_scene(rng)
    if form == "look":
        return Dialogue(form, scene, question_thread(scene, rng, length, words))
    asked = question_thread(scene, rng, length - 1, words)
    return Dialogue(form, scene, [*asked, _draw_from(scene, rng, words, grid)])


def question_thread(scene: Scene, rng: np.random.Generator, count: int, words: Words) -> list[Turn]:
    """`count` turns about one scene: chains of a question and its follow-ups, and single questions."""
    turns: list[Turn] = []
    asked: set[str] = set()
    for _ in range(20):
        chain = choose(rng, _CHAINS)(scene, rng) if rng.random() < 0.7 else _single(scene, rng)
        if not chain or chain[0].ask in asked:
            continue
        asked.add(chain[0].ask)
        first = Question(chain[0].ask, str(chain[0].answer), chain[0].kind)
        turns += [chain[0]._replace(ask=words.question(first, rng)), *chain[1:]]
        if len(turns) >= count:
            break
    return turns[:count]


def _single(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    if rng.random() < 0.15:
        return [Turn("Describe the image.", describe(scene, rng), "caption")]
    return [Turn(*asked) for asked in questions(scene, rng, 1)]


# --- chains ----------------------------------------

#: By the attribute asked for: what names the object instead, the first question, and the follow-ups.
_LOOK_WORDINGS = {
    "colour": (
        "shape",
        "What colour is the {}?",
        ("And the {}?", "What about the {}?", "And what colour is the {}?"),
    ),
    "shape": (
        "colour",
        "What shape is the {} object?",
        ("And the {} one?", "What about the {} one?", "And the {} object?"),
    ),
}


def _look_chain(scene: Scene, rng: np.random.Generator, attribute: str) -> list[Turn]:
    """Like "What colour is the star?", "And the circle?", "Where is it relative to the red star?"."""
    named_by, first, further = _LOOK_WORDINGS[attribute]
    named = shuffled(rng, identified(scene, named_by))
    if not named:
        return []
    item, *others = named
    turns = [Turn(first.format(getattr(item, named_by)), getattr(item, attribute), attribute)]
    if others and rng.random() < 0.6:
        item = others[0]
        ask = choose(rng, further).format(getattr(item, named_by))
        turns.append(Turn(ask, getattr(item, attribute), "follow_up"))
    return turns + _about(scene, item, attribute, rng)


def _count_chain(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """Like "How many stars are there?", "And how many circles?", "And in all?"."""
    item = choose(rng, scene.objects)
    shown = [other.shape for other in scene.objects if other.shape != item.shape]
    others = shown if shown and rng.random() < 0.75 else SHAPES
    shapes = [item.shape, choose_other(rng, others, item.shape)]
    if rng.random() < 0.3:
        shapes.reverse()
    counts = Counter(item.shape for item in scene.objects)
    first, second = (plural(shape) for shape in shapes)
    ask = choose(rng, ("And how many {}?", "And {}?", "What about {}?")).format(second)
    turns = [
        Turn(f"How many {first} are there?", str(counts[shapes[0]]), "count_by_shape"),
        Turn(ask, str(counts[shapes[1]]), "follow_up"),
    ]
    if rng.random() < 0.5:
        ask = choose(rng, ("And in all?", "How many objects is that in all?", "And all objects together?"))
        turns.append(Turn(ask, str(len(scene.objects)), "follow_up"))
    return turns


def _existence_chain(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """Like "Is there a red star?", "And a blue one?"."""
    item = choose(rng, scene.objects)
    shown = {(other.colour, other.shape) for other in scene.objects}
    first = item.colour if rng.random() < 0.35 else choose(rng, list(COLOURS))
    others = [colour for colour in COLOURS if colour != first]
    present = [colour for colour in others if (colour, item.shape) in shown]
    absent = [colour for colour in others if (colour, item.shape) not in shown]
    second = choose(rng, present if present and rng.random() < 0.8 else absent)
    answers = ["yes" if (colour, item.shape) in shown else "no" for colour in (first, second)]
    ask = choose(rng, ("And {} {} one?", "What about {} {} one?", "Or {} {} one?"))
    return [
        Turn(f"Is there {article(first)} {first} {item.shape}?", answers[0], "existence"),
        Turn(ask.format(article(second), second), answers[1], "follow_up"),
    ]


_CHAINS: tuple[Callable[[Scene, np.random.Generator], list[Turn]], ...] = (
    partial(_look_chain, attribute="colour"),
    partial(_look_chain, attribute="shape"),
    _count_chain,
    _existence_chain,
)


def _about(scene: Scene, item: SceneObject, attribute: str, rng: np.random.Generator) -> list[Turn]:
    """Up to two questions in which "it" is `item`, whose colour or shape was the last answer."""
    asked = [_where(scene, item, rng), _whether(scene, item, rng), _likeness(scene, item, attribute, rng)]
    found = [turn for turn in shuffled(rng, asked) if turn is not None]
    return found[: int(rng.random() * 3)]


def _where(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Turn | None:
    other = _companion(scene, item, rng)
    if other is None:
        return None
    wording = choose(rng, ("Where is it relative to the {}?", "Where is it compared to the {}?"))
    return Turn(wording.format(f"{other.colour} {other.shape}"), str(relation(item, other)), "follow_up")


def _whether(scene: Scene, item: SceneObject, rng: np.random.Generator) -> Turn | None:
    other = _companion(scene, item, rng)
    if other is None:
        return None
    where = str(relation(item, other))
    holds = rng.random() < 0.5
    claimed = choose(rng, RELATION_WORDS[where if holds else OPPOSITE[where]][:-1])
    return Turn(f"Is it {claimed} the {other.colour} {other.shape}?", "yes" if holds else "no", "follow_up")


def _likeness(scene: Scene, item: SceneObject, attribute: str, rng: np.random.Generator) -> Turn | None:
    """The number of other objects with the same `attribute`, which must not be the one that names `item`."""
    others = sum(getattr(other, attribute) == getattr(item, attribute) for other in scene.objects) - 1
    if others == 0 and rng.random() < 0.6:
        return None  # "no" would be too common
    if rng.random() < 0.5:
        return Turn(f"How many other objects have the same {attribute}?", str(others), "follow_up")
    return Turn(f"Does anything else have the same {attribute}?", "yes" if others else "no", "follow_up")


def _companion(scene: Scene, item: SceneObject, rng: np.random.Generator) -> SceneObject | None:
    """Another object with an unambiguous name and a clear relation to `item`."""
    named = distinct_looks(scene)
    fitting = [other for other in named if other is not item and relation(item, other) is not None]
    return choose(rng, fitting) if fitting else None


# --- generated images ----------------------------------------


def _draw_then_ask(rng: np.random.Generator, count: int, words: Words, grid: int | None) -> list[Turn]:
    skill = choose(rng, EXACT_SKILLS)
    target = scene_for_skill(rng, skill, grid)
    ask = words.prompt(target.prompt, target.spec, target.scene.background, rng)
    turns = [Turn(ask, target.scene, "draw", target.spec)]
    change = _change(target.scene, rng, grid) if skill == "single_object" and rng.random() < 0.6 else None
    if change is not None:
        # The change comes last: with two images, "it" would be ambiguous.
        thread = question_thread(target.scene, rng, count - 2, words) if count > 2 else []
        return [*turns, *thread, change]
    return turns + question_thread(target.scene, rng, count - 1, words)


def _change(scene: Scene, rng: np.random.Generator, grid: int | None) -> Turn:
    """The only object of `scene` again: in another colour, as another shape, or several of it."""
    (item,) = scene.objects
    kind = choose(rng, ("colour", "shape", "count"))
    if kind == "colour":
        colour = choose_other(rng, COLOURS, item.colour)
        wordings = ("Now in {}.", "Make it {}.", "The same in {}, please.", "Can you draw it in {}?")
        ask = choose(rng, wordings).format(colour)
        return _image_turn(ask, Scene((replace(item, colour=colour),), scene.background))
    if kind == "shape":
        shape = choose_other(rng, SHAPES, item.shape)
        wordings = ("Now {} {}.", "Make it {} {}.", "The same as {} {}.", "{} {} instead, please.")
        ask = capital(choose(rng, wordings).format(article(shape), f"{shape} in the same colour"))
        return _image_turn(ask, Scene((replace(item, shape=shape),), scene.background))
    return _several(item, scene.background, rng, grid)


def _draw_from(scene: Scene, rng: np.random.Generator, words: Words, grid: int | None) -> Turn:
    """An image that follows from a shown scene: one of its objects, alone or changed, or something else."""
    named = distinct_looks(scene)
    if not named or rng.random() < 0.25:
        target = scene_for_skill(rng, choose(rng, ("single_object", "two_object", "counting")), grid)
        ask = words.prompt(f"Now draw {_wanted(target.spec)}.", target.spec, target.scene.background, rng)
        return Turn(ask, target.scene, "draw", target.spec)
    item = choose(rng, named)
    (place,) = place_objects(rng, 1, grid)
    alone = replace(item, x=place.x, y=place.y, radius=place.radius)
    kind = choose(rng, ("only", "colour", "several"))
    if kind == "several":
        return _several(item, scene.background, rng, grid, f" like the {item.colour} {item.shape}")
    if kind == "colour":
        colour = choose_other(rng, COLOURS, item.colour)
        wording = choose(rng, ("Draw the {} {} in {}.", "Now draw the {} {} again, but in {}."))
        ask = wording.format(item.colour, item.shape, colour)
        return _image_turn(ask, Scene((replace(alone, colour=colour),), scene.background))
    wording = choose(rng, ("Draw only the {}.", "Now draw just the {}.", "Can you draw the {} alone?"))
    return _image_turn(wording.format(f"{item.colour} {item.shape}"), Scene((alone,), scene.background))


def _several(
    item: SceneObject, background: str, rng: np.random.Generator, grid: int | None, which: str = ""
) -> Turn:
    """Two to four of `item`. `which`: the description used where "of them" would be ambiguous."""
    count = 2 + int(rng.random() * 3)
    objects = [replace(item, x=p.x, y=p.y, radius=p.radius) for p in place_objects(rng, count, grid)]
    wording = choose(rng, ("Now draw {} {}{}.", "Draw {} {}{}, please."))
    ask = wording.format(NUMBER_WORDS[count], plural(item.shape) if which else "of them", which)
    return _image_turn(ask, Scene(tuple(objects), background))


def _image_turn(ask: str, scene: Scene) -> Turn:
    return Turn(ask, scene, "draw", spec_for_scene(scene))


def _wanted(spec: ImageSpec) -> str:
    return " and ".join(noun_phrase(one.shape, one.colour, one.count) for one in spec.objects)
