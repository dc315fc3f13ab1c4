"""Batch-invariant image generation: an image's batch has a shape that depends on its prompt only.

The order in which a matrix product adds up depends on the shapes of its factors. In bf16 the sums then differ
in a digit that decides about some codes, so that an image depends on how many others are generated with it.
Here image j of a prompt is always row j mod n of a batch of n images of that prompt alone, without padding.
All shapes, and its row in them, are then the same however many images are asked for. Rows that nobody asked
for are computed too, and dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ...tokenizer import VisualCodes
from ..configuration import DualTokenConfig
from .image_loop import ImagePrompt
from .progress import Progress

#: Generates a prompt's images: (prompt, images, seeds, index of the first image, progress) -> codes.
OneBatch = Callable[[ImagePrompt, int, Sequence[int], int, Progress | None], VisualCodes]


@dataclass(frozen=True)
class FixedBatch:
    """A batch of images `first`, `first` + 1, ... of a prompt, and the rows in it that were asked for."""

    prompt: int
    first: int
    wanted: slice


def fixed_batches(prompts: int, images: int, first: int, size: int) -> list[FixedBatch]:
    """The batches of `size` that hold images `first` to `first` + `images` - 1 of every prompt, in order."""
    end = first + images
    starts = range(first // size * size, end, size)
    return [
        FixedBatch(prompt, start, slice(max(first - start, 0), min(end - start, size)))
        for prompt in range(prompts)
        for start in starts
    ]


def generate_in_fixed_batches(
    one_batch: OneBatch,
    prompts: Sequence[ImagePrompt],
    images: int,
    seeds: Sequence[int],
    first: int,
    size: int,
    progress: Progress | None,
) -> VisualCodes:
    """Codes (R, P, D) of `images` images, from index `first`, of every prompt, in order of prompts."""
    batches = fixed_batches(len(prompts), images, first, size)
    found = []
    for number, batch in enumerate(batches):
        report = None if progress is None else partial(_part, progress, number, len(batches))
        codes = one_batch(prompts[batch.prompt], size, [seeds[batch.prompt]], batch.first, report)
        found.append([one[batch.wanted] for one in vars(codes).values()])
    return VisualCodes(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def alone(prompt: ImagePrompt, config: DualTokenConfig) -> list[ImagePrompt]:
    """Left-padded prompts (B, L) one by one (1, l), without padding."""
    ids, mask, codes = prompt.input_ids, prompt.attention_mask, prompt.codes
    starts = mask.long().argmax(dim=1).tolist()
    rows = [(ids[row : row + 1, start:], mask[row : row + 1, start:]) for row, start in enumerate(starts)]
    if codes is None:
        return [ImagePrompt(*row) for row in rows]
    counts = (ids.eq(config.image_token_id).sum(dim=1) // config.num_positions).tolist()
    parts = zip(*(one.split(counts) for one in vars(codes).values()), strict=True)
    return [ImagePrompt(*row, VisualCodes(*part)) for row, part in zip(rows, parts, strict=True)]


def _part(progress: Progress, number: int, count: int, done: int, total: int) -> object:
    """Report the positions of batch `number` of `count` as those of one long batch."""
    return progress(number * total + done, count * total)
