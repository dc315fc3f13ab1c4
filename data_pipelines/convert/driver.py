"""The driver that all converters share: a source in, a folder of shards out, over many processes.

The samples of a source are cut into parts of a fixed number (see `job`), which worker processes convert. A
part makes one shard for each split.
"""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...common.errors import UserError, first_line
from ...common.json_files import is_encodable
from ...common.outputs import SHARD_MAKERS, check_output
from ..job import Job, count_finished
from ..partial_output import partial_folder
from ..records import require_trainable
from ..shards.sample_codec import EncodedSample, encode_record
from ..shards.writer import require_split
from ..workers import map_in_workers
from .converter import Converter
from .samples import OutputOptions, Rejected, Sample, rejecting

#: So many rejected samples are named in the manifest itself; `rejected.jsonl` next to it names all.
NAMED_IN_MANIFEST = 1000
_COMMAND = "dualtoken prepare"
_CHUNK = 32  # samples that travel to a worker process together


def write_shards(converter: Converter, output: OutputOptions) -> dict[str, Any]:
    """Convert all of a data set to a folder of shards and return its manifest.

    Resumes `OUTPUT.partial` where a run with equal settings was stopped. Raises UserError when the output may
    not be made (it exists, is an input or holds one, or is being made by another process), when an unfinished
    run had other settings, when a disk is full or fails, when finished shards cannot be renamed to the output
    (they stay), and when not one sample could be used: that is a wrong input, not a few corrupt samples.
    """
    target, inputs = Path(output.folder), converter.inputs()
    check_output(target, inputs, output.overwrite, makers=SHARD_MAKERS)  # before the input is read
    description = {"source": converter.name, "licence": converter.licence, "settings": converter.settings()}
    if not is_encodable(json.dumps(description, ensure_ascii=False)):
        raise UserError(f"an option for {converter.name} is not UTF-8: give it in other letters")
    try:
        plan = {**description, "shard_size": output.shard_size, "input": converter.fingerprint()}
        with Job(target, plan, command=_COMMAND, inputs=inputs, overwrite=output.overwrite) as job:
            if not job.is_merging:
                _convert(job, converter, output)
            skipped = dict(converter.skipped())
            described = {**description, **({"skipped": skipped} if skipped else {})}
            return job.finish(described, most_named=NAMED_IN_MANIFEST)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"No space left on the disk of {target}, free some" if full else first_line(error)
        raise UserError(
            f"{reason}: give the same command again; {count_finished(target)} finished parts are kept in "
            f"{partial_folder(target)}."
        ) from error


def _convert(job: Job, converter: Converter, output: OutputOptions) -> None:
    """Make the parts that are not finished. UserError, and nothing is kept, where there is not one record."""
    try:
        _make_parts(job, converter, output)
        if not job.has_records:
            raise _nothing_usable(converter, job.rejected)
    except UserError:
        if not job.has_records:
            job.clear()  # a wrong input: there is nothing to resume
        raise


def _nothing_usable(converter: Converter, rejected: list[dict[str, str]]) -> UserError:
    reason = f": {rejected[0]['sample']}: {rejected[0]['reason']}" if rejected else ": it is empty"
    return UserError(f"No sample of {converter.name} could be used{reason}.")


def _make_parts(job: Job, converter: Converter, output: OutputOptions) -> None:
    size = max(1, output.shard_size // converter.records_per_sample)  # samples of a part
    first = job.first_unfinished()
    with (
        tqdm(
            total=converter.total(),
            initial=first * size,
            unit="samples",
            disable=not output.progress,
            mininterval=1.0,
        ) as bar,
        map_in_workers(
            partial(_convert_chunk, converter),
            _chunks(converter.samples_from(first * size), size, first),
            output.workers,
        ) as converted,
    ):
        for number, chunks in itertools.groupby(converted, key=lambda chunk: chunk.part):
            # One shard for each split, with the number of the part.
            key = f"{number:05d}{{:06d}}".format
            with job.making_part(number, key, first_shard=number) as writer:
                for chunk in chunks:
                    for result in chunk.results:
                        if isinstance(result, Rejected):
                            writer.reject(result.sample, result.reason)
                        else:
                            writer.write_encoded(*result)
                    bar.update(chunk.samples)


@dataclass(frozen=True)
class _Chunk:
    """Samples of one part that travel to a worker process together."""

    part: int
    samples: list[Sample | Rejected]


@dataclass(frozen=True)
class _Converted:
    part: int
    samples: int
    results: list[tuple[EncodedSample, str] | Rejected]


def _chunks(samples: Iterator[Sample | Rejected], size: int, first: int) -> Iterator[_Chunk]:
    for number in itertools.count(first):
        part = itertools.islice(samples, size)
        empty = True
        while chunk := list(itertools.islice(part, _CHUNK)):
            empty = False
            yield _Chunk(number, chunk)
        if empty:
            return


def _convert_chunk(converter: Converter, chunk: _Chunk) -> _Converted:
    results: list[tuple[EncodedSample, str] | Rejected] = []
    for sample in chunk.samples:
        if isinstance(sample, Rejected):
            results.append(sample)
        else:
            results.extend(rejecting(sample.name, lambda sample=sample: _encode(converter, sample)))  # type: ignore[misc]
    return _Converted(chunk.part, len(chunk.samples), results)


def _encode(converter: Converter, sample: Sample) -> Iterator[tuple[EncodedSample, str]]:
    for record, split in converter.records(sample.payload):
        require_split(split)
        yield encode_record(require_trainable(record)), split
