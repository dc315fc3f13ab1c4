"""Text generation that notices when the model wants to draw instead."""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ...common.errors import UserError


class ImageWatcher(LogitsProcessor):
    """Raises UserError where a prompt's answer is to go on with an image, and changes nothing otherwise.

    A text alone would be nonsense there: the token that opens an image is held back, and whatever comes next
    is what the model holds for almost impossible.

    Args:
        image_start: the token that opens an image.
        ends: tokens after which a row is finished.
        prompt_length: tokens of a prompt, padding included.
        beams: rows of each prompt; the first is the best so far.
    """

    def __init__(self, image_start: int, ends: list[int], prompt_length: int, beams: int = 1) -> None:
        self.image_start, self.prompt_length, self.beams = image_start, prompt_length, beams
        self.ends = torch.tensor(ends)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new, best = input_ids[:: self.beams, self.prompt_length :], scores[:: self.beams]
        is_done = torch.isin(new, self.ends.to(new.device)).any(dim=1)
        wants_image = best.float().softmax(dim=-1)[:, self.image_start] > 0.5
        found = (wants_image & ~is_done).nonzero()
        if found.numel():
            raise UserError(
                f"the model answers prompt {int(found[0]) + 1} of {len(best)} with an image: pass "
                "generation_mode='image' to draw, 'interleaved' for text and images in turn, or 'text' for "
                "words only"
            )
        return scores
