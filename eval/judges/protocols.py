"""Interfaces of the models that score. A metric whose model is not given is null, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from PIL import Image

from ..scorers.geneval import Detection

if TYPE_CHECKING:
    from torch import Tensor

M = TypeVar("M")
#: Returns the model, which it loads at its first call; None if no model is given.
Source = Callable[[], M | None]
ENVIRONMENT = "DUALTOKEN_EVAL_"


class Clip(Protocol):
    """Normalised embeddings of images and texts."""

    name: str

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images -> (B, E)."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, E)."""


class Detector(Protocol):
    """Detects objects of COCO's classes, under GenEval's names."""

    name: str

    def require(self, names: Sequence[str]) -> None:
        """UserError unless the detector knows all these classes."""

    def __call__(self, image: Image.Image) -> list[Detection]:
        """All objects of one RGB image with a confidence above 0.3, GenEval's threshold."""


class VqaJudge(Protocol):
    """Answers yes or no to a question about an image."""

    name: str

    def probabilities(self, image: Image.Image, question: str) -> tuple[float, float]:
        """The probabilities of "Yes" and of "No" as the first word of the answer."""


class TextJudge(Protocol):
    """A language model; `name` includes its checksum."""

    name: str

    def reply(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """A reply to each prompt, without surrounding blanks."""


class Ranker(Protocol):
    """Ranks texts by how well they fit an image."""

    def ranks(self, images: Sequence[Image.Image], correct: Sequence[int], texts: Sequence[str]) -> list[int]:
        """The rank, from 0, of `texts[i]` among all texts for each image; `correct` holds i for each."""


def not_given() -> None:
    """The source of a model that is not given."""
    return


@dataclass(frozen=True)
class Judges:
    """The models that score; a function loads each at its first call."""

    clip: Source[Clip] = not_given
    detector: Source[Detector] = not_given
    vqa_judge: Source[VqaJudge] = not_given
    text_judge: Source[TextJudge] = not_given
    inception: Source[Callable[[Tensor], Tensor]] = not_given
    ranker: Source[Ranker] = not_given


def missing(option: str) -> str:
    """The reason why a metric is null without a scoring model; `option` is that of the command line."""
    return f"no local {option} is given (--{option}, or {ENVIRONMENT}{option.upper()})"
