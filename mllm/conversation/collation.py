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
    """One conversation as a sequence: ids and labels (L,) int64, and images in order of appearance.

    `labels` are the ids of targets (`<|image|>` at the slots of a target image), and -100 at other positions.
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

    Positions restart at every record: without an attention_mask, transformers infers from them that records
    do not see each other. The rest of a row is one more document, without targets.

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
    if not images:
        return {}
    cached = [image for image in images if isinstance(image, CachedCodes)]
    if not cached:
        return {"pixel_values": image_processor(images, return_tensors="pt")["pixel_values"]}
    if len(cached) < len(images):
        raise UserError("a batch mixes images and cached codes; cache all of them or none")
    codes = {"pixel_codes": [one.pixel for one in cached], "semantic_codes": [one.semantic for one in cached]}
    return {name: torch.from_numpy(np.stack(arrays).astype(np.int64)) for name, arrays in codes.items()}


def flash_attention_bounds(position_ids: Tensor) -> dict[str, Any]:
    """The bounds of a packed batch's documents, which flash attention needs for more than one row.

    From position_ids (B, L), 0 at every start: cu_seq_lens_q and cu_seq_lens_k, the starts and the end in the
    flattened B * L positions (int32), and max_length_q and max_length_k, the longest document.
    """
    starts = position_ids.flatten().eq(0).nonzero().squeeze(1).to(torch.int32)
    bounds = torch.cat([starts, starts.new_tensor([position_ids.numel()])])
    named = {"cu_seq_lens": bounds, "max_length": int(bounds.diff().max())}
    return {f"{name}_{side}": value for name, value in named.items() for side in "qk"}


def _empty_rows(count: int, length: int, pad_id: int, counter: str) -> dict[str, Tensor]:
    """Rows (count, length) of padding without targets, and zeros under the name `counter`."""
    if not count:
        raise UserError("an empty batch has nothing to collate")
    fill = {"input_ids": pad_id, counter: 0, "labels": IGNORE}
    shape = (count, length)
    return {name: torch.full(shape, value, dtype=torch.long, device="cpu") for name, value in fill.items()}


def _put(batch: dict[str, Tensor], row: int, start: int, record: EncodedRecord) -> None:
    for name in ("input_ids", "labels"):
        batch[name][row, start : start + len(record)] = torch.from_numpy(getattr(record, name))
