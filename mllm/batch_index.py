"""The positions of a batch that a forward pass gathers, found on the host.

Found on a GPU, each kind of them would make the host wait until all queued work is done. Shapes: B sequences
of length L, I images of P positions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .conversation.collation import IGNORE


@dataclass(frozen=True)
class BatchIndex:
    """Indices (int64) into the flattened inputs and states of a batch.

    image_slots (I * P,): the `<|image|>` tokens, in B * L. text_rows (T,) and visual_rows (V,): the states,
    in B * (L - 1), that predict a text token or the codes of a visual position. visual_slots (V,): the
    positions of these, in I * P.
    """

    image_slots: Tensor
    text_rows: Tensor
    visual_rows: Tensor
    visual_slots: Tensor

    @classmethod
    def of(cls, input_ids: Tensor, labels: Tensor, image_id: int) -> "BatchIndex":
        """Of ids and labels (B, L), as in the model's `forward`; on their device."""
        is_image, following = input_ids.eq(image_id), labels[:, 1:].flatten()
        order = (is_image.flatten().cumsum(0) - 1).view_as(input_ids)
        rows = _where(following.eq(image_id))
        return cls(
            image_slots=image_slots(input_ids, image_id),
            text_rows=_where((following != IGNORE) & (following != image_id)),
            visual_rows=rows,
            visual_slots=order[:, 1:].flatten()[rows],
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "BatchIndex":
        """The same indices on another device."""
        return BatchIndex(*(one.to(device, non_blocking=non_blocking) for one in vars(self).values()))

    def pin_memory(self) -> "BatchIndex":
        """The same indices in page-locked memory, from which a GPU copies without a wait."""
        return BatchIndex(*(one.pin_memory() for one in vars(self).values()))


def image_slots(input_ids: Tensor, image_id: int) -> Tensor:
    """The indices of the `<|image|>` tokens in flattened ids (B, L)."""
    return _where(input_ids.eq(image_id).flatten())


def _where(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)
