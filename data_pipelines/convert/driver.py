"""The driver that all converters share: a source in, a folder of shards out, over many processes.

The samples of a source are cut into parts of a fixed number (see `job`), which worker processes convert. A
part makes one shard for each split.
"""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...common.errors import UserError, first_line
from ...common.json_files import is_encodable
from ...common.outputs import SHARD_MAKERS, Inputs, check_output
from ..job import Job, count_finished
from ..partial_output import partial_folder
from ..records import Record, require_trainable
from ..shards.sample_codec import EncodedSample, encode_record
from ..shards.writer import require_split
from ..workers import map_in_workers
from .samples import OutputOptions, Rejected, rejecting

#: So many rejected samples are named in the manifest itself; `rejected.jsonl` next to it names all.
NAMED_IN_MANIFEST = 1000
_COMMAND = "dualtoken prepare"
_CHUNK = 32  # samples that travel to a worker process together


@dataclass(frozen=True)
class Sample:
    """One entry of a source: its name for messages, and whatever its `records` needs. Picklable."""

    name: str
    payload: Any


class Source:
    """What a converter implements; it travels to worker processes, so it must be picklable.

    `name` and `licence` go to the manifest, and `settings` (any JSON) too: equal settings and an equal
    `fingerprint` of the input must mean equal records.
    """

    name: str = ""
    licence: str = "unknown"
    #: Records that one sample becomes: a unit is as many samples as fill a shard.
    records_per_sample: int = 1

    def settings(self) -> dict[str, Any]:
        """Everything that decides what the records are."""
        return {}

    def fingerprint(self) -> str:
        """Changes when the input changes, so that an unfinished run is not continued with other data."""
        return ""

    def inputs(self) -> Inputs:
        """The files and folders that are read, by the option that names them: no output may replace them."""
        return {}

    def skipped(self) -> Mapping[str, int]:
        """What of the input is no sample, counted by what it is; known when all samples have been passed."""
        return {}

    def total(self) -> int | None:
        """How many samples there are, where it is known beforehand."""
        return None

    def samples(self) -> Iterator[Sample | Rejected]:
        """Every sample, always in the same order."""
        raise NotImplementedError

    def samples_from(self, start: int) -> Iterator[Sample | Rejected]:
        """The samples without the first `start`; a source may have a faster way than passing over them."""
        return itertools.islice(self.samples(), start, None)

    def records(self, payload: Any) -> Iterable[tuple[Record, str]]:
        """(record, split) of one sample, in a worker process. Raises RecordError for one that is unusable."""
        raise NotImplementedError


def write_source(source: Source, output: OutputOptions) -> dict[str, Any]:
    """Convert all of `source` to a folder of shards and return its manifest.

    Resumes `OUTPUT.partial` where a run with equal settings was stopped. Raises UserError when the output may
    not be made (it exists, is an input or holds one, or is being made by another process), when an unfinished
    run had other settings, when a disk is full or fails, when finished shards cannot be renamed to the output
    (they stay), and when not one sample could be used: that is a wrong input, not a few corrupt samples.
    """
    target, inputs = Path(output.folder), source.inputs()
    check_output(target, inputs, output.overwrite, makers=SHARD_MAKERS)  # before the input is read
    description = {"source": source.name, "licence": source.licence, "settings": source.settings()}
    if not is_encodable(json.dumps(description, ensure_ascii=False)):
        raise UserError(f"an option for {source.name} is not UTF-8: give it in other letters")
    try:
        plan = {**description, "shard_size": output.shard_size, "input": source.fingerprint()}
        with Job(target, plan, command=_COMMAND, inputs=inputs, overwrite=output.overwrite) as job:
            if not job.is_merging:
                _convert(job, source, output)
            skipped = dict(source.skipped())
            described = {**description, **({"skipped": skipped} if skipped else {})}
            return job.finish(described, most_named=NAMED_IN_MANIFEST)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"No space left on the disk of {target}, free some" if full else first_line(error)
        raise UserError(
            f"{reason}: give the same command again; {count_finished(target)} finished parts are kept in "
            f"{partial_folder(target)}."
        ) from error


def _convert(job: Job, source: Source, output: OutputOptions) -> None:
    """Make the parts that are not finished. UserError, and nothing is kept, where there is not one record."""
    try:
        _make_parts(job, source, output)
        if not job.has_records:
            raise _nothing_usable(source, job.rejected)
    except UserError:
        if not job.has_records:
            job.clear()  # a wrong input: there is nothing to resume
        raise


def _nothing_usable(source: Source, rejected: list[dict[str, str]]) -> UserError:
    reason = f": {rejected[0]['sample']}: {rejected[0]['reason']}" if rejected else ": it is empty"
    return UserError(f"No sample of {source.name} could be used{reason}.")


def _make_parts(job: Job, source: Source, output: OutputOptions) -> None:
    size = max(1, output.shard_size // source.records_per_sample)  # samples of a part
    first = job.first_unfinished()
    with (
        tqdm(
            total=source.total(),
            initial=first * size,
            unit="samples",
            disable=not output.progress,
            mininterval=1.0,
        ) as bar,
        map_in_workers(
            partial(_convert_chunk, source),
            _chunks(source.samples_from(first * size), size, first),
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


def _convert_chunk(source: Source, chunk: _Chunk) -> _Converted:
    results: list[tuple[EncodedSample, str] | Rejected] = []
    for sample in chunk.samples:
        if isinstance(sample, Rejected):
            results.append(sample)
        else:
            results.extend(rejecting(sample.name, lambda sample=sample: _encode(source, sample)))  # type: ignore[misc]
    return _Converted(chunk.part, len(chunk.samples), results)


def _encode(source: Source, sample: Sample) -> Iterator[tuple[EncodedSample, str]]:
    for record, split in source.records(sample.payload):
        require_split(split)
        yield encode_record(require_trainable(record)), split
