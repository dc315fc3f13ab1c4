"""An answer of text and images in turn, as ids and codes."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class InterleavedOutput:
    """One answer: `sequences` (1, L), ids with the prompt, and the new images' codes (I, P, D), in order.

    prompt_length: how many of the ids are the prompt.
    images: the new images' pixels (I, 3, S, S) in the image processor's range; None for a model without its
        visual tokenizer.
    """

    sequences: Tensor
    pixel_codes: Tensor
    semantic_codes: Tensor
    prompt_length: int = 0
    images: Tensor | None = None
