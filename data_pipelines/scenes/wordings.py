"""Rewordings of the generated questions and prompts about scenes, as users would put them.

A rewording has exactly the meaning of the original, so that the answer stays the same. The last wording of
every list is reserved: records of held-out seeds use only these, all others never, so that models can be
evaluated on wordings they were not trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from .language import RELATION_PHRASES, ImageSpec, WantedObject, capital, join_phrases, noun_phrase, plural

RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "higher up than"),
    "below": ("below", "under", "beneath", "lower down than"),
}
_RELATIONS = {phrase: where for where, phrase in RELATION_PHRASES.items()}
_ANY_RELATION = "|".join(_RELATIONS)

# By kind: the form of what the generator asks, then what users may ask instead.
_QUESTIONS: dict[str, tuple[str, ...]] = {
    "colour": (
        r"(?:What colou?r is|Which colour does) the (?P<shape>\w+)(?: have)?\?",
        "What's the colour of the {shape}?",
        "The {shape} is what colour?",
        "Tell me the color of the {shape}.",
        "Can you tell me what colour the {shape} is?",
        "What color does the {shape} have?",
        "Name the colour of the {shape}.",
        "{shape} colour?",
        "In which colour is the {shape} drawn?",
    ),
    "shape": (
        r"(?:What shape is|What is|Which shape is)(?: the)? (?P<colour>\w+)(?: object| shape)?\?",
        "What is the {colour} thing?",
        "What shape does the {colour} thing have?",
        "The {colour} one is what shape?",
        "Tell me the shape of the {colour} object.",
        "Can you name the {colour} shape?",
        "What kind of shape is {colour}?",
        "Which form does the {colour} object have?",
    ),
    "total_count": (
        r"How many (?:objects|shapes) .+",
        "Count the objects.",
        "How many things are in this picture?",
        "What is the number of shapes?",
        "Can you count the shapes for me?",
        "How many things can you see?",
        "Tell me how many objects there are.",
        "Number of objects?",
        "How many shapes does the picture contain?",
    ),
    "count_by_shape": (
        r"How many (?P<shapes>\w+) are (?:there|in the image)\?",
        "How many {shapes} can you see?",
        "Count the {shapes}.",
        "Number of {shapes}?",
        "Tell me how many {shapes} there are.",
        "How many {shapes} does the picture show?",
        "What's the number of {shapes} here?",
    ),
    "count_by_colour": (
        r"How many (?:are )?(?P<colour>\w+)(?: (?:objects|shapes) are there)?\?",
        "How many {colour} things are there?",
        "Count the {colour} objects.",
        "How many of the shapes are {colour}?",
        "Tell me how many {colour} shapes you see.",
        "Number of {colour} things?",
        "How many {colour} objects does the picture show?",
    ),
    "relation": (
        r"Where is (?P<a>the [\w ]+?) relative to (?P<b>the [\w ]+)\?",
        "Where is {a} compared to {b}?",
        "Is {a} left, right, above or below {b}?",
        "Seen from {b}, where is {a}?",
        "Which side of {b} is {a} on: left, right, above or below?",
        "On which side of {b} do you find {a}?",
        "In which direction from {b} is {a}?",
    ),
    "relation_yes_no": (
        rf"Is (?P<a>the [\w ]+?) (?P<where>{_ANY_RELATION}) (?P<b>the [\w ]+)\?",
        "Is {a} {where} {b}?",
        "Would you say that {a} is {where} {b}?",
        "{a} is {where} {b}, yes or no?",
        "Can you check whether {a} is {where} {b}?",
        "Do you find {a} {where} {b}?",
    ),
    "existence": (
        r"(?:Is there|Do you see) (?P<what>(?:an?|anything) [\w ]+?)(?: in the image)?\?",
        "Can you see {what}?",
        "Does the picture show {what}?",
        "Is {what} in this picture?",
        "Do you find {what} here?",
        "Can {what} be seen?",
    ),
    "statement": (
        r"True or false: (?P<claim>.+)\.",
        "{claim}. True or false?",
        "Is this true or false: {claim}?",
        "Tell me whether it is true or false that {claim}.",
        "True or false? {claim}",
        "Answer with true or false: {claim}.",
    ),
}
_CAPTION_REQUESTS = (
    "Describe this picture.",
    "What do you see?",
    "Tell me what is in this picture.",
    "What does the picture show?",
    "Give me a short description.",
    "Please describe what you see.",
    "Describe what is shown.",
)
_PROMPTS = (
    "draw {}",
    "please paint {}",
    "can you make {}?",
    "could you draw {} for me?",
    "I want a picture of {}",
    "I'd like to see {}",
    "paint {}",
    "make an image of {}",
    "create an image with {}",
    "let me see {}",
    "sketch {}",
    "show {}",
    "a picture with {}",
    "please make a drawing of {}",
    "can I have a picture of {}?",
    "draw me {}",
    "give me an image that shows {}",
)
_GROUNDS = (
    "{} on a {} background",
    "{} on {} ground",
    "{}, the background is {}",
    "{} in front of a {} background",
)


def reword_question(question: str, kind: str, rng: np.random.Generator, reserved: bool = False) -> str:
    """`question`, reworded; `kind` is one of `questions.KINDS`, or "caption".

    reserved: use only the wordings that never occur in training. ValueError for a question of another form.
    """
    if kind == "caption":
        return _casual(_pick(_CAPTION_REQUESTS, rng, reserved), rng)
    pattern, *wordings = _QUESTIONS[kind]
    match = re.fullmatch(pattern, question)
    if match is None:
        raise ValueError(f"this is not a question of kind {kind}: {question}")
    slots = match.groupdict()
    if "where" in slots:
        slots["where"] = _pick(RELATION_WORDS[_RELATIONS[slots["where"]]], rng, reserved)
    if "claim" in slots:
        slots["claim"] = _reword_claim(slots["claim"], rng, reserved)
    return _casual(capital(_pick(wordings, rng, reserved).format(**slots)), rng)


def reword_prompt(
    spec: ImageSpec, rng: np.random.Generator, background: str | None = None, reserved: bool = False
) -> str:
    """A reworded prompt for exactly the objects of `spec`; one of four names the `background` too."""
    phrase = prompt_phrase(spec, rng, reserved)
    if background is not None and rng.random() < 0.25:
        phrase = _pick(_GROUNDS, rng, reserved).format(phrase, background)
    return _casual(capital(_pick(_PROMPTS, rng, reserved).format(phrase)), rng)


def prompt_phrase(spec: ImageSpec, rng: np.random.Generator, reserved: bool = False) -> str:
    """The wanted objects in words: "a red circle", "a circle in red", "3 blue stars", …"""
    phrases = [_object_phrase(wanted, rng) for wanted in spec.objects]
    if spec.relation is None:
        return join_phrases(phrases)
    return f" {_pick(RELATION_WORDS[spec.relation], rng, reserved)} ".join(phrases)


def _object_phrase(wanted: WantedObject, rng: np.random.Generator) -> str:
    shape, colour, count = wanted.shape, wanted.colour, wanted.count
    sample = rng.random()
    if sample < 0.7:
        return noun_phrase(shape, colour, count)
    if count > 1:
        shapes = plural(shape)
        return f"{count} {colour} {shapes}" if sample < 0.85 else f"{count} {shapes} in {colour}"
    return f"one {colour} {shape}" if sample < 0.8 else f"a {shape} in {colour}"


def _reword_claim(claim: str, rng: np.random.Generator, reserved: bool) -> str:
    match = re.fullmatch(rf"(the .+?) is ({_ANY_RELATION}) (the .+)", claim)
    if match is None:
        return claim
    where = _pick(RELATION_WORDS[_RELATIONS[match.group(2)]], rng, reserved)
    return f"{match.group(1)} is {where} {match.group(3)}"


def _pick(wordings: Sequence[str], rng: np.random.Generator, reserved: bool) -> str:
    """A random wording; the last one if and only if `reserved`."""
    number = int(rng.random() * (len(wordings) - 1))
    return wordings[-1] if reserved else wordings[number]


def _casual(text: str, rng: np.random.Generator) -> str:
    """As people type: sometimes without a capital, sometimes without the final punctuation mark."""
    if rng.random() < 0.35 and not text.startswith(("I ", "I'")):
        text = text[0].lower() + text[1:]
    if rng.random() < 0.3:
        text = text.rstrip("?.")
    return text
