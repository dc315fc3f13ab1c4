"""Synthetic conversations: questions about an image, captions, image generation and plain text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dualtoken.data_pipelines.records import Message, Part, assistant, question_turns, user
from dualtoken.data_pipelines.scenes.language import describe
from dualtoken.data_pipelines.scenes.questions import questions
from dualtoken.data_pipelines.scenes.scene import Scene, random_scene

ImageOf = Callable[[Scene, np.random.Generator], Part]
# Shares of a mixture.
WEIGHTS = {"vqa": 0.4, "caption": 0.2, "t2i": 0.3, "chat": 0.1}


def conversation(
    kind: str, rng: np.random.Generator, image_of: ImageOf, longest_chat: int = 120
) -> list[Message]:
    """One conversation of a kind of `WEIGHTS`; `image_of` makes its image, `longest_chat` is in words."""
    scene = random_scene(rng)
    if kind == "chat":
        words = rng.choice(describe(scene, rng).split(), size=int(rng.integers(5, longest_chat)))
        return [user("Go on."), assistant(" ".join(words))]
    image = image_of(scene, rng)
    if kind == "t2i":
        return [user(describe(scene, rng)), assistant(image)]
    if kind == "caption":
        return [user(image, "Describe the image."), assistant(describe(scene, rng))]
    asked = [(pair.question, pair.answer) for pair in questions(scene, rng, 6)]
    return question_turns([image], asked[: int(rng.integers(1, 7))])


def random_codes(side: int = 8, depth: int = 4, num_codes: int = 512) -> ImageOf:
    """Images of random codes, which cost as much to compute; by default of nano's shape."""

    def image(scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
        pixel, semantic = rng.integers(num_codes, size=(2, side, side, depth))
        return {"type": "image", "pixel_codes": pixel, "semantic_codes": semantic}

    return image
