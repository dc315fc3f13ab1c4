"""Images to codes, once: shards whose images are replaced by the codes of one visual tokenizer.

Training then reads a few hundred bytes per image instead of running the tokenizer again every step. The
manifest binds the codes to the tokenizer that made them; `check_codes_belong` refuses any other one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..tokenizer.errors import UserError
from ..tokenizer.modeling import DualTokenizer
from ..tokenizer.processing import DualTokenizerImageProcessor
from ..tokenizer.stored import StoredTokenizer
from .records import Part, Record, RecordError, with_image_parts
from .shards import ShardDataset, ShardWriter, read_manifest

# Weights that only turn codes into images: training them further leaves all codes as they are.
_AFTER_THE_CODES = ("pixel_decoder.", "pixel_post_projection.")


def codes_checksum(tokenizer: DualTokenizer | StoredTokenizer) -> str:
    """SHA-256 over everything in a tokenizer, loaded or in its files, that its codes depend on.

    That is the choice of layers and all weights but those of the pixel decoder.
    """
    config = tokenizer.config
    facts = {name: getattr(config, name) for name in ("pixel_layer", "semantic_layer", "shortcut_layer")}
    facts["shortcut_weight"] = config.shortcut_weight
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    weights = tokenizer.state_dict()
    for name in sorted(weights):
        if not name.startswith(_AFTER_THE_CODES):
            tensor = weights[name]
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_codes_belong(manifest: Mapping[str, Any], checksum: str, where: str = "these shards") -> None:
    """Raise UserError if a manifest's cached codes are not of the tokenizer with this `codes_checksum`.

    Shards of images pass.
    """
    made_by = manifest.get("tokenizer")
    if made_by is not None and made_by["checksum"] != checksum:
        raise UserError(
            f"The codes in {where} were made by another tokenizer ({made_by['checksum'][:12]}…): "
            "run `dualtoken tokenize` again with this one."
        )


def tokenize_shards(
    tokenizer: DualTokenizer,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    image_processor: DualTokenizerImageProcessor | None = None,
    shard_size: int = 50_000,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the records of `source` with codes, uint16 (H, W, D), for images; returns the new manifest.

    Splits, ids, texts and metadata stay. Records with an image that cannot be read are rejected and named.
    Raises UserError when `source` holds codes already.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {batch_size}.")
    manifest = read_manifest(source)
    if "tokenizer" in manifest:
        raise UserError(f"{source} holds codes already: give the shards with the images.")
    processor = image_processor or DualTokenizerImageProcessor(size=tokenizer.config.image_size)
    # nn.Module's own `to`: that of PreTrainedModel has no usable types.
    torch.nn.Module.to(tokenizer.eval(), device)
    encoder = _Encoder(tokenizer, processor, batch_size, torch.device(device))
    writer = ShardWriter(
        output,
        source=manifest["source"],
        licence=manifest["licence"],
        settings=manifest["settings"],
        shard_size=shard_size,
        overwrite=overwrite,
        extra={
            "tokenizer": _describe(tokenizer, processor),
            "rejected_before": manifest["rejected"]["reasons"],
        },
    )
    bar = tqdm(total=manifest["counts"]["records"], unit="records", disable=not progress, mininterval=1.0)
    with writer, bar:
        for shard in manifest["shards"]:
            records = _readable(ShardDataset(Path(source) / shard["file"]), encoder, writer)
            for batch in _batches(records, batch_size):
                for record in encoder.encode(batch):
                    writer.write(record, shard["split"])
                bar.update(len(batch))
    return read_manifest(output)


def _describe(tokenizer: DualTokenizer, processor: DualTokenizerImageProcessor) -> dict[str, Any]:
    config = tokenizer.config
    return {
        "checksum": codes_checksum(tokenizer),
        "image_size": processor.side,
        "grid_size": list(config.grid_size),
        "pixel_quantizer": dict(config.pixel_quantizer),
        "semantic_quantizer": dict(config.semantic_quantizer),
    }


@dataclass
class _Loaded:
    """A record and its images as the processor's uint8 arrays (S, S, 3)."""

    record: Record
    images: list[np.ndarray]


@dataclass(frozen=True)
class _Encoder:
    tokenizer: DualTokenizer
    processor: DualTokenizerImageProcessor
    batch_size: int
    device: torch.device

    def load(self, record: Record) -> _Loaded:
        """Decode and resize a record's images. Raises RecordError."""
        try:
            return _Loaded(record, [self.processor.resize(part["image"]) for part in record.image_parts()])
        except (OSError, ValueError, SyntaxError) as error:
            raise RecordError(f"Record '{record.id}': an image cannot be read ({error}).") from error

    def encode(self, batch: Sequence[_Loaded]) -> Iterator[Record]:
        """The records of a batch with codes in place of images."""
        images = [image for loaded in batch for image in loaded.images]
        parts: list[Part] = []
        for start in range(0, len(images), self.batch_size):
            parts.extend(self._encode_images(images[start : start + self.batch_size]))
        position = 0
        for loaded in batch:
            stop = position + len(loaded.images)
            yield with_image_parts(loaded.record, parts[position:stop])
            position = stop

    def _encode_images(self, images: list[np.ndarray]) -> list[Part]:
        pixel_values = self.processor(images)["pixel_values"].to(self.device)
        codes = self.tokenizer.encode(pixel_values)
        pixel, semantic = codes.pixel.cpu().numpy(), codes.semantic.cpu().numpy()
        return [
            {"type": "image", "pixel_codes": pixel[i], "semantic_codes": semantic[i]}
            for i in range(len(images))
        ]


def _readable(dataset: ShardDataset, encoder: _Encoder, writer: ShardWriter) -> Iterator[_Loaded]:
    """Every record whose images can be decoded; the others are rejected."""
    for index in range(len(dataset)):
        try:
            yield encoder.load(dataset[index])
        except RecordError as error:
            writer.reject(f"record {index} of {dataset.shards[0].name}", str(error))


def _batches(records: Iterator[_Loaded], num_images: int) -> Iterator[list[_Loaded]]:
    """Records in groups of about `num_images` images."""
    batch: list[_Loaded] = []
    count = 0
    for loaded in records:
        batch.append(loaded)
        count += max(1, len(loaded.images))
        if count >= num_images:
            yield batch
            batch, count = [], 0
    if batch:
        yield batch
