"""Questions and captions for a photo of which only the label is known, in varied wordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..scenes.language import article
from ..scenes.scene import choose

_OPEN = (
    "What is this?",
    "What do you see?",
    "What is in this picture?",
    "What can you see in the photo?",
    "Name what is shown.",
    "what's this",
    "Tell me what this is.",
    "What does the photo show?",
)
_OF_KIND = (
    "Which {} is shown?",
    "What {} is this?",
    "Which {} do you see?",
    "What kind of {} is in the photo?",
    "Name the {}.",
    "which {} is it?",
)
_AMONG = (
    "Which of these is shown: {}?",
    "Is this {}?",
    "What is it: {}?",
    "Choose the right word: {}.",
    "{}?",
)
_WHETHER = ("Does the photo show {}?", "Do you see {}?", "Is this {}?", "Is it {}?")
_WHETHER_PLURAL = ("Does the photo show {}?", "Do you see {}?", "Are these {}?")
_REQUESTS = (
    "Describe the photo.",
    "Describe the image.",
    "Caption this photo.",
    "Give this picture a caption.",
    "Please describe what you see.",
)
_CAPTIONS = ("A photo of {}.", "The photo shows {}.", "This is a picture of {}.", "In the photo you see {}.")
_OPTIONS = 4
_UNCOUNTABLE = ("outwear",)


class LabelQuestion(NamedTuple):
    """A question about a photo, its answer, and its kind: open, options, yes_no or caption."""

    question: str
    answer: str
    kind: str


def with_article(label: str) -> str:
    """'a dress', 'an anchor'; 'shoes' and 'outwear' without an article."""
    return label if label in _UNCOUNTABLE or is_plural(label) else f"{article(label)} {label}"


def is_plural(label: str) -> bool:
    """Whether a label is plural, such as 'shoes'."""
    return label.endswith("s") and not label.endswith(("ss", "us", "is"))


def label_question(
    label: str, labels: Sequence[str], noun: str | None, rng: np.random.Generator
) -> LabelQuestion:
    """A random question about a photo of a `label`, or a request to describe it.

    labels: all labels of the set, for options and false claims. noun: what they are ("piece of clothing").
    """
    others = [other for other in labels if other != label]
    chance = rng.random()
    if chance < 0.45 or not others:
        if noun is not None and rng.random() < 0.5:
            return LabelQuestion(choose(rng, _OF_KIND).format(noun), label, "open")
        return LabelQuestion(choose(rng, _OPEN), label, "open")
    if chance < 0.7:
        return LabelQuestion(choose(rng, _AMONG).format(_options(label, others, rng)), label, "options")
    if chance < 0.85:
        holds = rng.random() < 0.5
        claimed = label if holds else choose(rng, others)
        wordings = _WHETHER_PLURAL if is_plural(claimed) else _WHETHER
        question = choose(rng, wordings).format(with_article(claimed))
        return LabelQuestion(question, "yes" if holds else "no", "yes_no")
    return LabelQuestion(
        choose(rng, _REQUESTS), choose(rng, _CAPTIONS).format(with_article(label)), "caption"
    )


def _options(label: str, others: Sequence[str], rng: np.random.Generator) -> str:
    """The label among some others, in random order: 'hat, dress or shoes'."""
    number = min(1 + int(rng.random() * (_OPTIONS - 1)), len(others))
    chosen = [others[i] for i in rng.permutation(len(others))[:number].tolist()]
    chosen.insert(int(rng.random() * (number + 1)), label)
    return f"{', '.join(chosen[:-1])} or {chosen[-1]}"
