"""Tokenize the images of shards once: training then reads codes instead of running the tokenizer every step.

The manifest names the tokenizer that made the codes (see `checksums`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ...common.errors import ImageError, UserError, shown
from ...common.outputs import SHARD_MAKERS, Inputs, check_output
from ...common.paths import user_path
from ...common.values import whole_number
from ...tokenizer.modeling import DualTokenizer
from ...tokenizer.precision import precision_of
from ...tokenizer.processing import DualTokenizerImageProcessor, processor_of
from ..job import Job, Share
from ..records import MOST_RECORDS, Part, Record, RecordError, with_image_parts
from ..shards.format import read_manifest
from ..shards.reader import ShardDataset
from ..shards.storage import Location, locate
from ..shards.writer import PartWriter
from ..workers import MOST_WORKERS
from .checksums import codes_checksum, preprocessing_checksum
from .views import ViewOptions
from .views import views as record_views

_COMMAND = "dualtoken tokenize"
#: Images in one batch, at most.
MOST_BATCH = 65_536


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
    views: ViewOptions | None = None,
    share: Share | None = None,
    decoders: int = 1,
    reads: Inputs | None = None,
) -> dict[str, Any] | None:
    """Write the records of `source` with codes, uint16 (H, W, D), for images; return the new manifest.

    Every shard of `source` becomes one shard of `output`, or several of `shard_size` records. Splits, ids,
    texts and metadata stay; `views` adds crops and mirror images. Damaged records, and those with an
    unreadable image, are rejected and listed. A killed run leaves `OUTPUT.partial`, and the same call resumes
    it; calls with equal arguments write the same bytes.

    Args:
        share: the share of this process when several make one output; all but the main one return None.
        decoders: threads that decode images ahead of the tokenizer.
        reads: other inputs that `output` must not overwrite, by the option that names them.

    Errors:
        UserError where `source` holds codes already, and where `output` may not be made or is being made.
    """
    whole_number(batch_size, "--batch-size", 1, MOST_BATCH)
    whole_number(shard_size, "--shard-size", 1, MOST_RECORDS)
    whole_number(decoders, "--decoders", 1, MOST_WORKERS)
    output, share, place = user_path(output), share or Share(), locate(source)
    place = user_path(place) if isinstance(place, Path) else place
    inputs = {**(reads or {}), "--input": place if isinstance(place, Path) else None}
    if share.is_main:
        check_output(output, inputs, overwrite, makers=SHARD_MAKERS)
    manifest = _manifest_of_images(place)
    processor = processor_of(tokenizer.config, image_processor)
    # nn.Module's own `to`: that of PreTrainedModel has no usable types.
    torch.nn.Module.to(tokenizer.eval(), device)
    options = views or ViewOptions()
    encoder = _Encoder(tokenizer, processor, batch_size, torch.device(device), options, decoders)
    made_by = _describe(tokenizer, processor)
    plan = {
        "input": hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest(),
        "tokenizer": made_by["checksum"],
        **{name: made_by[name] for name in ("preprocessing", "encode_precision")},
        "views": asdict(options),
        "shard_size": shard_size,
    }
    with Job(output, plan, command=_COMMAND, inputs=inputs, share=share, overwrite=overwrite) as job:
        _make_parts(job, place, manifest, encoder, progress)
        if not share.is_main:
            return None
        description = {name: manifest[name] for name in ("source", "licence", "settings")}
        description |= {"tokenizer": made_by, "rejected_before": manifest["rejected"]["reasons"]}
        return job.finish({**description, "plan": job.plan}, renumber=True)


def _manifest_of_images(place: Path | Location) -> dict[str, Any]:
    manifest = read_manifest(place)
    if "tokenizer" in manifest:
        raise UserError(f"{place} holds codes already: give the shards with the images.")
    if not manifest["shards"]:
        raise UserError(f"{place} holds no shards: there is nothing to tokenize.")
    return manifest


def _make_parts(
    job: Job, place: Path | Location, manifest: Mapping[str, Any], encoder: _Encoder, progress: bool
) -> None:
    """Make the parts of this process, one per input shard; the main process then waits for the others."""
    shards, total = manifest["shards"], manifest["counts"]["records"]
    first_records = itertools.accumulate((shard["records"] for shard in shards), initial=0)
    first_keys = [first * encoder.views.copies for first in first_records]
    disabled = not (progress and job.share.is_main)
    with tqdm(total=total, unit="records", disable=disabled, mininterval=1.0) as bar:
        assigned = job.assigned(len(shards))
        bar.update(sum(shard["records"] for n, shard in enumerate(shards) if job.is_finished(n)))
        for number in assigned:
            path, split = place / shards[number]["file"], shards[number]["split"]
            if isinstance(path, Path) and not path.is_file():
                raise UserError(f"{path} is missing: copy it there, or make the data again")
            dataset = ShardDataset(path, tolerant=True, records=shards[number]["records"])
            key = partial(_key, first_keys[number])
            with job.making_part(number, key, job.plan["shard_size"]) as writer:
                # No batch spans two shards, so the codes of a shard do not depend on the others.
                for batch in _batches(_readable(dataset, encoder, writer, bar), encoder.batch_size):
                    for record in encoder.encode(batch):
                        writer.write(record, split)

        def show(finished: int) -> None:
            bar.n = max(bar.n, round(total * finished / len(shards)))
            bar.refresh()

        if job.share.is_main:
            job.wait_for_all(len(shards), show)


def _key(first: int, number: int) -> str:
    return f"{first + number:08d}"


def _describe(tokenizer: DualTokenizer, processor: DualTokenizerImageProcessor) -> dict[str, Any]:
    config = tokenizer.config
    return {
        "checksum": codes_checksum(tokenizer),
        "preprocessing": preprocessing_checksum(processor),
        "encode_precision": precision_of(tokenizer, config.encode_precision),
        "image_size": processor.side,
        "grid_size": list(config.grid_size),
        "pixel_quantizer": asdict(config.pixel_quantizer),
        "semantic_quantizer": asdict(config.semantic_quantizer),
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
    views: ViewOptions
    decoders: int

    def load(self, record: Record) -> list[_Loaded]:
        """Decode and resize the images of a record's views. Raises RecordError."""
        if any("image" not in part for part in record.image_parts()):
            raise RecordError(f"Record {shown(record.id)} holds codes already.")
        try:
            return [
                _Loaded(view, [self.processor.resize(part["image"]) for part in view.image_parts()])
                for view in record_views(record, self.views)
            ]
        except ImageError as error:
            raise RecordError(f"Record '{record.id}': an image cannot be read ({error}).") from error

    def encode(self, batch: Sequence[_Loaded]) -> Iterator[Record]:
        """The records of a batch, with codes instead of images."""
        images = [image for loaded in batch for image in loaded.images]
        parts: list[Part] = []
        for start in range(0, len(images), self.batch_size):
            parts.extend(self._encode_images(images[start : start + self.batch_size]))
        remaining = iter(parts)
        for loaded in batch:
            yield with_image_parts(loaded.record, list(itertools.islice(remaining, len(loaded.images))))

    def _encode_images(self, images: list[np.ndarray]) -> list[Part]:
        codes = self.tokenizer.encode(self.processor(images)["pixel_values"].to(self.device))
        return [
            {"type": "image", "pixel_codes": pixel, "semantic_codes": semantic}
            for pixel, semantic in zip(codes.pixel.cpu().numpy(), codes.semantic.cpu().numpy(), strict=True)
        ]


def _readable(
    dataset: ShardDataset, encoder: _Encoder, writer: PartWriter, bar: tqdm[Any]
) -> Iterator[_Loaded]:
    """Every view of every record whose images can be decoded, in order; the other records are rejected."""
    name, ahead = dataset.shards[0].name, 2 * encoder.decoders
    with ThreadPoolExecutor(encoder.decoders) as pool:
        pending: deque[Future[list[_Loaded]]] = deque()
        for index in range(len(dataset) + ahead):
            if index < len(dataset):
                try:
                    # Read in this thread, as all would share the file's position; decoded in the others.
                    pending.append(pool.submit(encoder.load, dataset[index]))
                except RecordError as error:
                    pending.append(Future())
                    pending[-1].set_exception(error)
            if index >= ahead:
                bar.update()
                try:
                    yield from pending.popleft().result()
                except RecordError as error:
                    writer.reject(f"record {index - ahead} of {name}", str(error))


def _batches(records: Iterator[_Loaded], num_images: int) -> Iterator[list[_Loaded]]:
    """Group records into batches of about `num_images` images."""
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
