"""Predictions of a model: answers, log-likelihoods of choices, generated images."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from PIL import Image

from ...common.images.reading import load_image
from ...mllm import DualTokenPipeline
from .likelihood import answer_likelihoods
from .task import Item


class Predictor(Protocol):
    """The interface through which the runner uses a model."""

    def answer(self, items: Sequence[Item], settings: Mapping[str, Any]) -> list[str]:
        """A greedy answer to each item."""

    def choose(self, items: Sequence[Item]) -> list[list[float]]:
        """The log-likelihood of each of an item's choices as the answer, summed over its tokens."""

    def generate_images(
        self, items: Sequence[Item], count: int, seeds: Sequence[int], settings: Mapping[str, Any]
    ) -> list[list[Image.Image]]:
        """`count` images of each item's prompt; image j has the random numbers of the item's seed and j."""


class PipelinePredictor:
    """A `DualTokenPipeline` as a `Predictor`."""

    def __init__(self, pipeline: DualTokenPipeline) -> None:
        self.pipeline = pipeline

    def answer(self, items: Sequence[Item], settings: Mapping[str, Any]) -> list[str]:
        asked = [(list(item.images) or None, item.prompt) for item in items]
        return self.pipeline.answer_many(asked, batch_size=len(asked), **settings)

    def choose(self, items: Sequence[Item]) -> list[list[float]]:
        likelihoods: list[list[float]] = []
        for item in items:
            images = [{"type": "image", "image": image} for image in map(load_image, item.images)]
            content = [*images, {"type": "text", "text": item.prompt}]
            question: dict[str, Any] = {"role": "user", "content": content}
            answered = [[question, {"role": "assistant", "content": choice}] for choice in item.choices]
            likelihoods.append([one.log_probability for one in answer_likelihoods(self.pipeline, answered)])
        return likelihoods

    def generate_images(
        self, items: Sequence[Item], count: int, seeds: Sequence[int], settings: Mapping[str, Any]
    ) -> list[list[Image.Image]]:
        prompts = [item.prompt for item in items]
        size = len(prompts) * count
        return self.pipeline.generate_images_many(prompts, count, seeds, size, **settings)
