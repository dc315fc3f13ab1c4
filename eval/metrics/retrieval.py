"""Text-image retrieval: R@k both ways, as CLIP's evaluations report it on COCO and Flickr30k."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...common.errors import UserError

CUTS = (1, 5, 10)
_ROWS = 1024


def retrieval_recall(
    images: Tensor, texts: Tensor, image_of_text: Sequence[int], cuts: Sequence[int] = CUTS
) -> dict[str, float]:
    """Recall in percent: "image_to_text_R@k" and "text_to_image_R@k".

    Args:
        images: embeddings (N, E). texts: embeddings (M, E). image_of_text: for each text the index of its
        image;
            an image may have several texts, and one of them among the first k is a hit.
        cuts: the k.

    Equal similarities count against the model: a model that gives every image the same embedding must not get
    everything right by the order of the list.
    """
    owner = torch.as_tensor(list(image_of_text), dtype=torch.int64)
    if not len(images) or len(owner) != len(texts):
        raise UserError(f"retrieval got {len(images)} images, {len(texts)} texts and {len(owner)} links")
    if len(owner.unique()) != len(images) or int(owner.max()) >= len(images) or int(owner.min()) < 0:
        raise UserError("retrieval needs at least one text for every image, and an image for every text")
    images, texts = (F.normalize(features.float().cpu(), dim=-1) for features in (images, texts))
    ranks = {
        "image_to_text": _ranks_of_texts(images, texts, owner),
        "text_to_image": _ranks_of_images(images, texts, owner),
    }
    return {
        f"{direction}_R@{k}": 100.0 * float((found < k).double().mean())
        for direction, found in ranks.items()
        for k in cuts
    }


def _ranks_of_texts(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """For each image, how many foreign texts are at least as near as the best of its own: (N,)."""
    ranks = []
    for start in range(0, len(images), _ROWS):
        similarity = images[start : start + _ROWS] @ texts.T
        own = owner == torch.arange(start, start + len(similarity)).unsqueeze(1)
        best = similarity.masked_fill(~own, float("-inf")).amax(dim=1, keepdim=True)
        ranks.append(((similarity >= best) & ~own).sum(dim=1))
    return torch.cat(ranks)


def _ranks_of_images(images: Tensor, texts: Tensor, owner: Tensor) -> Tensor:
    """For each text, how many foreign images are at least as near as its own: (M,)."""
    ranks = []
    for start in range(0, len(texts), _ROWS):
        similarity = texts[start : start + _ROWS] @ images.T
        own = owner[start : start + _ROWS].unsqueeze(1)
        near = similarity >= similarity.gather(1, own)
        ranks.append(near.sum(dim=1) - 1)  # its own image is as near as itself
    return torch.cat(ranks)
