"""The models that score, as tasks see them. Where one is not given, what needs it is null with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from PIL import Image

from ..scorers.geneval import Detection

if TYPE_CHECKING:
    from torch import Tensor

M = TypeVar("M")
#: A function that returns the model, loaded at its first call; None where no model is given.
Source = Callable[[], M | None]
ENVIRONMENT = "DUALTOKEN_EVAL_"


class Clip(Protocol):
    """Normalised embeddings of images and texts, for CLIPScore and names of colours."""

    name: str

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """PIL images -> (B, E)."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (B, E)."""


class Detector(Protocol):
    """Objects in images, with the names of COCO's classes."""

    name: str

    def require(self, names: Sequence[str]) -> None:
        """UserError unless the detector knows all these classes."""

    def __call__(self, image: Image.Image) -> list[Detection]:
        """All objects of one RGB image above GenEval's threshold."""


class VqaJudge(Protocol):
    """A model that answers yes or no about an image."""

    name: str

    def probabilities(self, image: Image.Image, question: str) -> tuple[float, float]:
        """The probabilities of "Yes" and of "No" as the first word of the answer."""


class TextJudge(Protocol):
    """A language model that replies to questions; `name` includes its checksum."""

    name: str

    def reply(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        """A reply to each prompt."""


class Ranker(Protocol):
    """A model that ranks texts by how well they fit an image."""

    def ranks(self, images: Sequence[Image.Image], correct: Sequence[int], texts: Sequence[str]) -> list[int]:
        """For each image the rank, from 0, of `texts[correct]` among all texts."""


def not_given() -> None:
    """The source of a model that is not given."""
    return


@dataclass(frozen=True)
class Judges:
    """The models that score, each behind a function that loads it at its first call."""

    clip: Source[Clip] = not_given
    detector: Source[Detector] = not_given
    vqa_judge: Source[VqaJudge] = not_given
    text_judge: Source[TextJudge] = not_given
    inception: Source[Callable[[Tensor], Tensor]] = not_given
    ranker: Source[Ranker] = not_given


def missing(option: str) -> str:
    """The reason given where a scoring model is not; `option` is its name on the command line."""
    return f"no local {option} is given (--{option}, or {ENVIRONMENT}{option.upper()})"
