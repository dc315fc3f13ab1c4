"""Encoded conversations, and batches of them: padded to one length, or packed one after the other into rows.

Shapes: B rows, L length, I images in order of appearance, P visual positions, D depths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...common.errors import UserError

#: The label of a position that is not a target.
IGNORE = -100


@dataclass(frozen=True)
class CachedCodes:
    """Codes of one image as integer arrays (P, D), in raster order of the positions."""

    pixel: NDArray[Any]
    semantic: NDArray[Any]


@dataclass(frozen=True)
class EncodedRecord:
    """One conversation as a sequence.

    `input_ids` (L,) int64. `labels` (L,): the id where it is a target, -100 elsewhere; at the slots of a
    target image the `<|image|>` id. `images` in order of appearance.
    """

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    images: list[Image.Image | CachedCodes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __repr__(self) -> str:
        targets = int((self.labels != IGNORE).sum())
        return f"EncodedRecord({len(self)} tokens, {targets} targets, {len(self.images)} images)"


def pad(records: Sequence[EncodedRecord], pad_id: int, padding_side: str) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels (B, L), one record a row. UserError without any record."""
    length = max(map(len, records), default=0)
    batch = _empty_rows(len(records), length, pad_id, "attention_mask")
    for row, record in enumerate(records):
        start = 0 if padding_side == "right" else length - len(record)
        _put(batch, row, start, record)
        batch["attention_mask"][row, start : start + len(record)] = 1
    return batch


def pack(rows: Sequence[Sequence[EncodedRecord]], pad_id: int, length: int) -> dict[str, Tensor]:
    """input_ids, position_ids and labels (B, length), several records a row.

    Positions begin anew at every record: from that alone, without an attention_mask, transformers keeps
    records from seeing each other. What a row has left over is one more document, without targets.

    Raises:
        UserError: there is no row, or one is longer than `length`.
    """
    batch = _empty_rows(len(rows), length, pad_id, "position_ids")
    for row, records in enumerate(rows):
        start = 0
        for record in records:
            if start + len(record) > length:
                raise UserError(f"a packed row of more than {length} tokens; pack by the records' lengths")
            _put(batch, row, start, record)
            batch["labels"][row, start] = IGNORE  # the state to its left is that of another record
            batch["position_ids"][row, start : start + len(record)] = torch.arange(len(record), device="cpu")
            start += len(record)
        batch["position_ids"][row, start:] = torch.arange(length - start, device="cpu")
    return batch


def collate_images(images: Sequence[Image.Image | CachedCodes], image_processor: Any) -> dict[str, Tensor]:
    """`pixel_values` (I, 3, S, S), or of cached images `pixel_codes` and `semantic_codes` (I, P, D) int64.

    Raises:
        UserError: images are mixed with cached codes.
    """
    cached = [image for image in images if isinstance(image, CachedCodes)]
    if not cached:
        return (
            {"pixel_values": image_processor(images, return_tensors="pt")["pixel_values"]} if images else {}
        )
    if len(cached) < len(images):
        raise UserError("a batch mixes images and cached codes; cache all of them or none")
    stack = lambda codes: torch.from_numpy(np.stack(codes).astype(np.int64))  # noqa: E731
    return {
        "pixel_codes": stack([image.pixel for image in cached]),
        "semantic_codes": stack([image.semantic for image in cached]),
    }


def flash_attention_bounds(position_ids: Tensor) -> dict[str, Any]:
    """Where the documents of a packed batch begin, as flash_attention_2 needs it for more than one row.

    position_ids (B, L), 0 at every start. Returns cu_seq_lens_q and cu_seq_lens_k, the starts and the end in
    the B * L flattened positions (int32), and max_length_q and max_length_k, the longest document.
    """
    starts = position_ids.flatten().eq(0).nonzero().squeeze(1).to(torch.int32)
    bounds = torch.cat([starts, starts.new_tensor([position_ids.numel()])])
    longest = int(bounds.diff().max())
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _empty_rows(count: int, length: int, pad_id: int, counter: str) -> dict[str, Tensor]:
    """Padding without targets, (count, length), and zeros under the name `counter`."""
    if not count:
        raise UserError("an empty batch has nothing to collate")
    fill = {"input_ids": pad_id, counter: 0, "labels": IGNORE}
    shape = (count, length)
    return {name: torch.full(shape, value, dtype=torch.long, device="cpu") for name, value in fill.items()}


def _put(batch: dict[str, Tensor], row: int, start: int, record: EncodedRecord) -> None:
    for name in ("input_ids", "labels"):
        batch[name][row, start : start + len(record)] = torch.from_numpy(getattr(record, name))
