"""Run a converter in worker processes and write a folder of shards.

Each part of the job (see `job`) has a fixed number of samples and becomes one shard per split.
"""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...common.errors import UserError, first_line
from ...common.json_files import is_encodable
from ...common.outputs import SHARD_MAKERS, check_output
from ...common.plugins import calling_plugin
from ..job import Job, count_finished
from ..node_job import Node, NodeJob
from ..partial_output import partial_folder
from ..records import require_trainable
from ..shards.sample_codec import EncodedSample, encode_record
from ..shards.writer import require_split
from ..workers import map_in_workers
from .chunks import all_chunks, node_chunks
from .converter import Converter
from .samples import OutputOptions, Rejected, Sample, rejecting

#: Rejected samples listed in the manifest itself; `rejected.jsonl` next to it lists all.
NAMED_IN_MANIFEST = 1000
_COMMAND = "dualtoken prepare"

_Result = tuple[EncodedSample, str] | Rejected


def write_shards(converter: Converter, output: OutputOptions) -> dict[str, Any]:
    """Convert a data set to a folder of shards and return its manifest.

    Resumes `OUTPUT.partial` where a run with equal settings was stopped.

    Errors:
        UserError where the output may not be made (it exists, is or holds an input, or another process makes
        it), where an unfinished run had other settings, where the disk is full or fails, where the finished
        shards cannot be renamed to the output (they are kept), and where no sample at all is usable: then the
        input is wrong, not a few corrupt samples.
    """
    made = _write(converter, output, Node())
    assert isinstance(made, dict)  # there is no other node
    return made


def write_share(converter: Converter, output: OutputOptions, node: Node) -> dict[str, Any] | list[int]:
    """The share of one of several nodes; errors as in `write_shards`.

    The last node merges all shares, to the same shards as `write_shards` would make, and returns the
    manifest; the others return the numbers of the nodes that are not finished yet.
    """
    return _write(converter, output, node)


def _write(converter: Converter, output: OutputOptions, node: Node) -> dict[str, Any] | list[int]:
    target, inputs = Path(output.folder), converter.inputs()
    check_output(target, inputs, output.overwrite, makers=SHARD_MAKERS)  # before the input is read
    converter.check_inputs()
    description = {"source": converter.name, "licence": converter.licence, "settings": converter.settings()}
    if not is_encodable(json.dumps(description, ensure_ascii=False)):
        raise UserError(f"an option for {converter.name} is not UTF-8: give it in other characters")
    try:
        plan = {**description, "shard_size": output.shard_size, "input": converter.fingerprint()}
        options: dict[str, Any] = {"command": _COMMAND, "inputs": inputs, "overwrite": output.overwrite}
        with (
            NodeJob(target, plan, node, **options) if node.count > 1 else Job(target, plan, **options) as job
        ):
            if not job.is_merging:
                _convert(job, converter, output)
            if skipped := dict(converter.skipped()):
                description["skipped"] = skipped
            return _finished(job, converter, description)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = f"No space left on the disk of {target}, free some" if full else first_line(error)
        raise UserError(
            f"{reason}: give the same command again; {count_finished(target)} finished parts are kept in "
            f"{partial_folder(target)}."
        ) from error


def _finished(job: Job, converter: Converter, description: dict[str, Any]) -> dict[str, Any] | list[int]:
    """The manifest of the output; for one of several nodes the nodes that are not finished yet."""
    if not isinstance(job, NodeJob):
        return job.finish(description, most_named=NAMED_IN_MANIFEST)
    if not job.is_merging and (unfinished := job.unfinished_nodes()):
        return unfinished
    if (lock := job.merging()) is None:
        return []
    with lock:
        if not job.is_merging:
            job.count_parts()
            _require_records(job, converter)
        return job.finish(description, most_named=NAMED_IN_MANIFEST)


def _require_records(job: Job, converter: Converter) -> None:
    if not job.has_records:
        reason = next((f"{one['sample']}: {one['reason']}" for one in job.rejected), "it is empty")
        raise UserError(f"No sample of {converter.name} could be used: {reason}.")


def _convert(job: Job, converter: Converter, output: OutputOptions) -> None:
    """Make the unfinished parts. UserError, and nothing is kept, where no sample is usable."""
    try:
        _make_parts(job, converter, output)
        if not isinstance(job, NodeJob):
            _require_records(job, converter)
    except UserError:
        if not job.has_records:
            job.clear()  # a wrong input: there is nothing to resume
        raise


def _make_parts(job: Job, converter: Converter, output: OutputOptions) -> None:
    size = max(1, output.shard_size // converter.records_per_sample)  # samples of a part
    if isinstance(job, NodeJob):
        chunks, done = node_chunks(job, converter.seeks, partial(_samples, converter), size), 0
    else:
        first = job.first_unfinished()
        chunks, done = all_chunks(_samples(converter, first * size), size, first), first * size
    total, disabled = converter.total(), not output.progress
    with (
        tqdm(total=total, initial=done, unit="samples", disable=disabled, mininterval=1.0) as bar,
        map_in_workers(partial(_convert_chunk, converter), chunks, output.workers) as converted,
    ):
        for number, part in itertools.groupby(converted, key=lambda chunk: chunk[0]):
            # One shard for each split, with the number of the part.
            key = f"{number:05d}{{:06d}}".format
            with job.making_part(number, key, first_shard=number) as writer:
                for _, num_samples, results in part:
                    for result in results:
                        if isinstance(result, Rejected):
                            writer.reject(result.sample, result.reason)
                        else:
                            writer.write_encoded(*result)
                    bar.update(num_samples)
    if isinstance(job, NodeJob):
        job.note_end()


def _samples(converter: Converter, start: int) -> Iterator[Sample | Rejected]:
    """The samples from `start` on. UserError for a missing file, and what a plug-in raises."""
    kind = getattr(converter, "kind", converter.name)
    try:
        with calling_plugin(f"converter {kind!r}: samples", type(converter)):
            yield from converter.samples_from(start)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"converter {kind!r}: {error.__cause__.filename} does not exist") from error
        raise


def _convert_chunk(
    converter: Converter, chunk: tuple[int, list[Sample | Rejected]]
) -> tuple[int, int, list[_Result]]:
    """(number of the part, number of samples, results) of a chunk."""
    number, samples = chunk
    results: list[_Result] = []
    for sample in samples:
        if isinstance(sample, Rejected):
            results.append(sample)
        else:
            results.extend(rejecting(sample.name, partial(_encode, converter, sample)))
    return number, len(samples), results


def _encode(converter: Converter, sample: Sample) -> Iterator[_Result]:
    for made in converter.records(sample.payload):
        if isinstance(made, Rejected):  # a part of the sample
            yield made
            continue
        record, split = made
        require_split(split)
        yield encode_record(require_trainable(record)), split
