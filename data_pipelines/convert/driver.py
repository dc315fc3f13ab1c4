"""The driver that all converters share: a source in, a folder of shards out, over many processes.

The samples of a source are cut into units of a fixed number. A unit makes one shard for each split and, when
its shards are whole, one journal; a run that was killed goes on behind the last journal and ends in the same
bytes as an uninterrupted one, whatever the number of processes. Until the end everything lies in
`OUTPUT.partial`, so `OUTPUT` is never half there.
"""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...common.errors import UserError, first_line
from ...common.files import atomic_file
from ...common.json_files import is_encodable, read_json_object, take_count, take_list
from ...common.outputs import Inputs
from ...common.paths import is_plain_name
from ..records import Record, RecordError
from ..shards.format import MANIFEST, OpenShard, build_manifest, mark_shards, read_manifest, require_split
from ..shards.sample_codec import EncodedSample, encode_record
from .samples import OutputOptions, Rejected, rejecting
from .unfinished import clear, deliver, goes_on, making, write_plan

REJECTED = "rejected.jsonl"
#: So many rejected samples are named in the manifest itself; `rejected.jsonl` beside it names all.
NAMED_IN_MANIFEST = 1000
_COMMAND = "dualtoken prepare"
_UNITS = "units"
_CHUNK = 32  # samples that travel to a worker process together
_MOST_SPLITS = 64  # every split of a unit is an open file


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

    Goes on with `OUTPUT.partial` where a run with equal settings was stopped. Raises UserError when the
    output may not be made (it exists, is an input or holds one, or is being made by another process), when an
    unfinished run had other settings, when a disk is full or fails, when finished shards cannot be renamed
    to the output (they stay), and when not one sample could be used: that is a wrong input, not a few corrupt
    samples.
    """
    target = Path(output.folder)
    with making(target, source.inputs(), output.overwrite, _COMMAND) as folder:
        try:
            work = _Work(folder, source, output)
            _convert_all(work, source, output)
            work.finish(target)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = f"No space left on the disk of {target}, free some" if full else first_line(error)
            units = len(list((folder / _UNITS).glob("*.json")))
            raise UserError(
                f"{reason}: give the same command again; {units} finished units are kept in {folder}."
            ) from error
    return read_manifest(target)


def _convert_all(work: _Work, source: Source, output: OutputOptions) -> None:
    try:
        _convert(work, source, output)
        if not any(journal["shards"] for journal in work.journals):
            raise _nothing_usable(source, work.journals)
    except UserError:
        if not any(journal["shards"] for journal in work.journals):
            shutil.rmtree(work.folder)  # a wrong input: there is nothing to go on with
        raise


def _nothing_usable(source: Source, journals: list[dict[str, Any]]) -> UserError:
    rejected = [item for journal in journals for item in journal["rejected"]]
    reason = f": {rejected[0]['sample']}: {rejected[0]['reason']}" if rejected else ": it is empty"
    return UserError(f"No sample of {source.name} could be used{reason}.")


def _convert(work: _Work, source: Source, output: OutputOptions) -> None:
    unit_size = max(1, output.shard_size // source.records_per_sample)
    done = sum(journal["samples"] for journal in work.journals)
    with tqdm(
        total=source.total(), initial=done, unit="samples", disable=not output.progress, mininterval=1.0
    ) as bar:
        chunks = _chunks(source.samples_from(done), unit_size, len(work.journals))
        with _converted(chunks, source, output.workers) as converted:
            for number, results in itertools.groupby(converted, key=lambda chunk: chunk.unit):
                unit = _Unit(work.shards, number)
                for chunk in results:
                    unit.add(chunk)
                    bar.update(chunk.samples)
                work.keep(unit)


# --- conversion in worker processes ----------------------------------------


@dataclass(frozen=True)
class _Chunk:
    unit: int
    samples: list[Sample | Rejected]


@dataclass(frozen=True)
class _Converted:
    unit: int
    samples: int
    results: list[tuple[EncodedSample, str] | Rejected]


def _chunks(samples: Iterator[Sample | Rejected], unit_size: int, first: int) -> Iterator[_Chunk]:
    for number in itertools.count(first):
        unit = itertools.islice(samples, unit_size)
        empty = True
        while chunk := list(itertools.islice(unit, _CHUNK)):
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
    return _Converted(chunk.unit, len(chunk.samples), results)


def _encode(source: Source, sample: Sample) -> Iterator[tuple[EncodedSample, str]]:
    for record, split in source.records(sample.payload):
        require_split(split)
        record.validate()
        if not record.has_target():
            raise RecordError("nothing to learn: no assistant turn with text or an image")
        yield encode_record(record), split


@contextmanager
def _converted(chunks: Iterator[_Chunk], source: Source, workers: int) -> Iterator[Iterator[_Converted]]:
    """The converted chunks in order, made by `workers` processes (1: by this one)."""
    if workers == 1:
        yield (_convert_chunk(source, chunk) for chunk in chunks)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=worker_context(), initializer=_start_worker, initargs=(source,)
    )
    try:
        yield ordered_results(pool, _convert_in_worker, chunks, 2 * workers + 2)
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process died, perhaps for lack of memory: give the same command again to go on, "
            "with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def worker_context() -> BaseContext:
    """How worker processes start: from a server that has imported this package once, where there is one.

    Not fork: libraries in this process may hold threads and locks. Spawning imports torch in every worker.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def ordered_results(
    pool: ProcessPoolExecutor, function: Callable[[Any], Any], tasks: Iterable[Any], window: int
) -> Iterator[Any]:
    """Like `pool.map`, with at most `window` tasks on their way: tasks may be many, and results large."""
    pending: deque[Future[Any]] = deque()
    for task in tasks:
        pending.append(pool.submit(function, task))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


_worker_source: Source | None = None


def _start_worker(source: Source) -> None:
    global _worker_source
    _worker_source = source
    die_with_parent()


def die_with_parent() -> None:
    """End this worker process when its parent is gone: a killed one cannot say so, and it would wait."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _convert_in_worker(chunk: _Chunk) -> _Converted:
    assert _worker_source is not None
    return _convert_chunk(_worker_source, chunk)


# --- the unfinished output ----------------------------------------


class _Unit:
    """The shards that one unit of samples makes: one for each split it has."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.samples = 0
        self.rejected: list[dict[str, str]] = []
        self._folder = folder
        self._shards: dict[str, OpenShard] = {}
        self._records = 0

    def add(self, chunk: _Converted) -> None:
        self.samples += chunk.samples
        for result in chunk.results:
            if isinstance(result, Rejected):
                self.rejected.append({"sample": result.sample, "reason": result.reason})
                continue
            sample, split = result
            if split not in self._shards:
                self._require_room()
                self._shards[split] = OpenShard(self._folder, split, self.number)
            self._shards[split].add(f"{self.number:05d}{self._records:06d}", sample)
            self._records += 1

    def _require_room(self) -> None:
        if len(self._shards) == _MOST_SPLITS:
            raise UserError(
                f"there are more than {_MOST_SPLITS} splits ({', '.join([*self._shards][:3])}, …): is the "
                "field that names them the right one?"
            )

    def journal(self) -> dict[str, Any]:
        shards = [shard.finish() for shard in self._shards.values()]
        return {"samples": self.samples, "shards": shards, "rejected": self.rejected}


class _Work:
    """`OUTPUT.partial`: the plan of a run, the shards of its finished units, and their journals."""

    def __init__(self, folder: Path, source: Source, output: OutputOptions) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self._units = folder / _UNITS
        self._source = source
        self._description = {
            "source": source.name,
            "licence": source.licence,
            "settings": source.settings(),
        }
        if not is_encodable(json.dumps(self._description, ensure_ascii=False)):
            raise UserError(f"an option for {source.name} is not UTF-8: give it in other letters")
        plan = {**self._description, "shard_size": output.shard_size, "input": source.fingerprint()}
        if not goes_on(folder, plan, output.overwrite):
            clear(folder)
            write_plan(folder, plan)
        self.shards.mkdir(exist_ok=True)
        self._units.mkdir(exist_ok=True)
        self.journals = self._finished_units()
        self._remove_unfinished()

    def keep(self, unit: _Unit) -> None:
        journal = unit.journal()
        with atomic_file(self._units / f"{unit.number:05d}.json") as temporary:
            temporary.write_text(json.dumps(journal, ensure_ascii=False), encoding="utf-8")
        self.journals.append(journal)

    def finish(self, target: Path) -> None:
        """Write the manifest and let the shards become `target`."""
        rejected = [item for journal in self.journals for item in journal["rejected"]]
        skipped = dict(self._source.skipped())
        manifest = build_manifest(
            {**self._description, **({"skipped": skipped} if skipped else {})},
            [shard for journal in self.journals for shard in journal["shards"]],
            rejected,
        )
        del manifest["rejected"]["samples"][NAMED_IN_MANIFEST:]
        if rejected:
            lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rejected)
            (self.shards / REJECTED).write_text(lines, encoding="utf-8")
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (self.shards / MANIFEST).write_text(text + "\n", encoding="utf-8")
        mark_shards(self.shards, _COMMAND)
        deliver(self.shards, target)
        shutil.rmtree(self.folder)

    def _finished_units(self) -> list[dict[str, Any]]:
        """The journals of the first units, up to one that is damaged or whose shards are not all there."""
        journals: list[dict[str, Any]] = []
        for number in itertools.count():
            try:
                journal = _read_journal(self._units / f"{number:05d}.json")
            except UserError:
                return journals
            paths = [(self.shards / shard["file"], shard["bytes"]) for shard in journal["shards"]]
            if not all(path.is_file() and path.stat().st_size == size for path, size in paths):
                return journals
            journals.append(journal)
        raise AssertionError

    def _remove_unfinished(self) -> None:
        """Delete what belongs to no finished unit: the shard that was open, later journals, stray files."""
        tars = {shard["file"] for journal in self.journals for shard in journal["shards"]}
        known = tars | {Path(name).with_suffix(".index.json").name for name in tars}
        journals = {f"{number:05d}.json" for number in range(len(self.journals))}
        for folder, names in ((self.shards, known), (self._units, journals)):
            for path in folder.iterdir():
                if path.name in names:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _read_journal(path: Path) -> dict[str, Any]:
    """The journal of a unit. UserError where it is not there, or is not what `_Unit.journal` makes."""
    journal = read_json_object(path)
    take_count(journal, "samples", path)
    take_list(journal, "shards", _is_shard_entry, "shards", path)
    take_list(journal, "rejected", _is_rejection, "rejected samples", path)
    return journal


def _is_shard_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and all(is_plain_name(entry.get(name)) for name in ("file", "split", "sha256"))
        and all(type(entry.get(name)) is int for name in ("records", "images", "bytes"))
    )


def _is_rejection(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(name), str) for name in ("sample", "reason"))
