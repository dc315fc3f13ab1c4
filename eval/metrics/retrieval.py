"""Text-image retrieval: R@k both ways, as CLIP's evaluations report it on COCO and Flickr30k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import UserError
from .base import Metric
from .ranking import ranks_of

CUTS = (1, 5, 10)
_ROWS = 1024


class RetrievalRecall(Metric):
    """`retrieval_recall` over batches of images with their texts; all embeddings are held."""

    full_state_update = False
    images: list[Tensor]
    texts: list[Tensor]
    texts_per_image: list[Tensor]

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in ("images", "texts", "texts_per_image"):
            self.add_state(name, [], "cat")
        # Processes without captions send states of the same shape and dtype.
        self.update(torch.empty(0, size), torch.empty(0, size), torch.empty(0, dtype=torch.int64))

    def update(self, images: Tensor, texts: Tensor, texts_per_image: Tensor) -> None:
        """Add image embeddings (B, E), embeddings of all their texts (M, E), and each image's number (B,)."""
        self.images.append(images.float().cpu())
        self.texts.append(texts.float().cpu())
        self.texts_per_image.append(texts_per_image)

    def compute(self) -> dict[str, float | None]:
        """The recalls, and "retrieval_n", the number of images; without any the recalls at 1 are None."""
        images, texts, numbers = (
            torch.cat(state) if isinstance(state, list) else state
            for state in (self.images, self.texts, self.texts_per_image)
        )
        found: dict[str, float | None] = {"retrieval_n": float(len(images))}
        if not len(images):
            return {**found, "image_to_text_R@1": None, "text_to_image_R@1": None}
        owner = torch.arange(len(images)).repeat_interleave(numbers)
        return {**found, **retrieval_recall(images, texts, owner)}


def retrieval_recall(
    images: Tensor, texts: Tensor, image_of_text: Sequence[int] | Tensor, cuts: Sequence[int] = CUTS
) -> dict[str, float]:
    """Recall in percent: "image_to_text_R@k" and "text_to_image_R@k".

    Args:
        images, texts: embeddings (N, E) and (M, E).
        image_of_text: for each text the index of its image; an image is found by any of its texts.
        cuts: the values of k.

    Equal similarities count against the model (`ranks_of`).
    """
    owner = torch.as_tensor(image_of_text, dtype=torch.int64)
    if not len(images) or len(owner) != len(texts):
        raise UserError(f"retrieval got {len(images)} images, {len(texts)} texts and {len(owner)} links")
    if len(owner.unique()) != len(images) or int(owner.max()) >= len(images) or int(owner.min()) < 0:
        raise UserError("retrieval needs at least one text for every image, and an image for every text")
    images, texts = (F.normalize(features.float().cpu(), dim=-1) for features in (images, texts))
    ranks = {
        "image_to_text": _ranks_of_texts(images, texts, owner),
        "text_to_image": torch.cat(
            [ranks_of(t @ images.T, o) for t, o in zip(texts.split(_ROWS), owner.split(_ROWS), strict=True)]
        ),
    }
    return {
        f"{direction}_R@{k}": 100.0 * float((found < k).double().mean())
        for direction, found in ranks.items()
        for k in cuts
    }


def _ranks_of_texts(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """For each image, the number of other images' texts at least as similar as the best of its own: (N,)."""
    ranks = []
    for start in range(0, len(images), _ROWS):
        similarity = images[start : start + _ROWS] @ texts.T
        own = owner == torch.arange(start, start + len(similarity)).unsqueeze(1)
        best = similarity.masked_fill(~own, float("-inf")).amax(dim=1, keepdim=True)
        ranks.append(((similarity >= best) & ~own).sum(dim=1))
    return torch.cat(ranks)
