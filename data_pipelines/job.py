"""Resumable work: an output folder of shards, made part by part by any number of processes.

Everything is written to `OUTPUT.partial` until the end, so `OUTPUT` is never incomplete. A part is a folder
with its shards and `part.json`, which appears only when it is complete; the main process merges all parts.
Processes share nothing but the folder: no connection between them can break, and a killed run resumes where
it stopped and produces the same bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError, shown
from ..common.files import atomic_folder, write_text
from ..common.json_files import read_json_object, take_list
from ..common.outputs import Inputs
from ..common.paths import inside, plain_name
from .partial_output import can_resume, clear, locked_output, partial_folder, publish, read_plan, write_plan
from .shards.format import MANIFEST, check_shard_entry, is_rejection, read_manifest
from .shards.packed_index import save_packed_index
from .shards.tar_index import index_path
from .shards.writer import PartWriter, build_manifest, mark_shards, write_manifest

REJECTED = "rejected.jsonl"
_PART = "part.json"
_RUN = "run.json"
_POLL = 0.2  # seconds


@dataclass(frozen=True)
class Share:
    """The parts that this process makes: number `rank` and every `size`-th after it.

    `run` identifies the processes that were started together.
    """

    rank: int = 0
    size: int = 1
    run: str = ""

    @classmethod
    def from_environment(cls) -> Share:
        """As set by torchrun, the deepspeed launcher and accelerate, or by srun; else a single process.

        Errors:
            UserError where RANK and WORLD_SIZE are not integers with 0 <= RANK < WORLD_SIZE.
        """
        names = ["MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"]
        rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        # srun sets the number of its tasks; a batch script itself has none.
        if not {"RANK", "WORLD_SIZE"} & os.environ.keys() and "SLURM_STEP_NUM_TASKS" in os.environ:
            names = ["SLURM_JOB_ID", "SLURM_STEP_ID"]
            rank, size = os.environ.get("SLURM_PROCID", "0"), os.environ["SLURM_STEP_NUM_TASKS"]
        run = " ".join(os.environ.get(name, "") for name in names).strip()
        with suppress(ValueError):
            share = cls(int(rank), int(size), run)
            if 0 <= share.rank < share.size:
                return share
        raise UserError(
            f"RANK is {shown(rank)} and WORLD_SIZE {shown(size)}: give integers with 0 <= RANK < WORLD_SIZE, "
            "or neither"
        )

    @property
    def is_main(self) -> bool:
        """Whether this process merges the parts."""
        return self.rank == 0


class Job:
    """Makes the folder of shards `output`; a context manager.

    The main process locks the unfinished folder, and the others join only work that the main process of their
    run has begun: two runs never share an output.

    Args:
        plan: what the result depends on (any JSON): unfinished work is only resumed by the same plan.
        command: named as the maker in the folder's mark.
        inputs: what `output` must not overwrite.
        patience: seconds to wait for other processes while nothing is written.

    Errors:
        UserError on entering, where `output` may not be written, or unfinished work has another plan.
    """

    def __init__(
        self,
        output: Path,
        plan: Mapping[str, Any],
        *,
        command: str,
        inputs: Inputs | None = None,
        share: Share | None = None,
        overwrite: bool = False,
        patience: float = 1800.0,
    ) -> None:
        self.output, self.plan, self.share = output, json.loads(json.dumps(plan)), share or Share()
        self.folder = partial_folder(output)
        self._command, self._inputs, self._overwrite = command, inputs or {}, overwrite
        self._patience = patience
        self._run = {**asdict(self.share), "rank": 0}
        self._lock = ExitStack()
        self._parts: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Job:
        if not self.share.is_main:
            # With `overwrite`, an output with the same plan may be the one to be replaced.
            self._wait(
                lambda: self._has_begun() or (not self._overwrite and self._is_done()),
                lambda: "the plan of rank 0",
            )
            return self
        with ExitStack() as lock:
            lock.enter_context(locked_output(self.output, self._inputs, self._overwrite, self._command))
            if not can_resume(self.folder, self.plan, self._overwrite):
                clear(self.folder)
                write_plan(self.folder, self.plan)
            write_text(self.folder / _RUN, json.dumps(self._run))
            self._lock = lock.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.close()

    def _has_begun(self) -> bool:
        """Whether the main process of this run works on the same plan."""
        try:
            return read_json_object(self.folder / _RUN) == self._run and read_plan(self.folder) == self.plan
        except UserError:
            return False

    def _is_done(self) -> bool:
        try:
            return bool(read_manifest(self.output).get("plan") == self.plan)
        except UserError:
            return False

    # ---- parts

    def _part_folder(self, number: int) -> Path:
        return self.folder / f"{number:06d}"

    @contextmanager
    def making_part(
        self, number: int, key: Callable[[int], str], shard_size: int | None = None, first_shard: int = 0
    ) -> Iterator[PartWriter]:
        """Write a part, which is kept when the block ends without an error; arguments as in `PartWriter`."""
        folder = self._part_folder(number)
        for unfinished in self.folder.glob(f".{folder.name}-*"):  # left by a killed process
            shutil.rmtree(unfinished, ignore_errors=True)
        with atomic_folder(folder) as temporary:
            with PartWriter(temporary, shard_size, first_shard, key) as writer:
                yield writer
                part = writer.finish()
            (temporary / _PART).write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")
        self._parts[number] = part

    def is_finished(self, number: int) -> bool:
        """Whether a part is complete; True for every number while parts are merged."""
        if number in self._parts or self.is_merging:
            return True
        folder = self._part_folder(number)
        try:
            part = _read_part(folder)
            complete = all((folder / one["file"]).stat().st_size == one["bytes"] for one in part["shards"])
        except (UserError, OSError):  # damaged: made again
            return False
        if complete:
            self._parts[number] = part
        return complete

    def first_unfinished(self) -> int:
        """The number of the first part that is not complete; only before parts are merged."""
        return next(number for number in itertools.count() if not self.is_finished(number))

    def clear(self) -> None:
        """Remove all parts."""
        self._parts.clear()
        clear(self.folder)

    def assigned(self, count: int) -> list[int]:
        """The unfinished ones of `count` parts that this process has to make."""
        numbers = range(self.share.rank, count, self.share.size)
        unfinished = [number for number in numbers if not self.is_finished(number)]
        # For a process that starts when everything is finished, no parts are left.
        return unfinished if self._has_begun() and not self.is_merging else []

    def wait_for_all(self, count: int, report: Callable[[int], None]) -> None:
        """Wait until all `count` parts are finished; `report` is called with the number of finished parts."""

        def done() -> bool:
            finished = sum(self.is_finished(number) for number in range(count))
            report(finished)
            return finished == count

        def missing() -> str:
            ranks = {n % self.share.size for n in range(count) if not self.is_finished(n)}
            return f"the shards of rank {', '.join(map(str, sorted(ranks)))}"

        self._wait(done, missing)

    def _wait(self, ready: Callable[[], bool], missing: Callable[[], str]) -> None:
        since, newest = time.monotonic(), 0.0
        while not ready():
            files = [path for pattern in ("*", "*/*") for path in self.folder.glob(pattern) if path.exists()]
            changed = max((path.stat().st_mtime for path in files), default=0.0)
            if changed > newest:
                since, newest = time.monotonic(), changed
            if time.monotonic() - since > self._patience:
                raise UserError(
                    f"rank {self.share.rank} waited for {missing()}, and nothing was written in "
                    f"{self.folder} for {self._patience:.0f} s: check the other processes, then give the "
                    "same command again"
                )
            time.sleep(_POLL)

    # ---- the output

    @property
    def rejected(self) -> list[dict[str, str]]:
        """The rejected samples of all parts, each {"sample", "reason"}."""
        return [item for part in self._all_parts() for item in part["rejected"]]

    @property
    def has_records(self) -> bool:
        return any(part["shards"] for part in self._all_parts())

    @property
    def is_merging(self) -> bool:
        """Whether all parts are finished, and their shards may have moved to the merged folder."""
        return (self._merged / MANIFEST).is_file()

    @property
    def _merged(self) -> Path:
        return self.folder / "merged"

    def finish(
        self, description: Mapping[str, Any], *, renumber: bool = False, most_named: int | None = None
    ) -> dict[str, Any]:
        """Merge all parts to the output, with `description` in its manifest, and return the manifest.

        Can be killed and called again at any moment.

        Args:
            renumber: number shards across all parts; otherwise they keep their names.
            most_named: rejected samples listed in the manifest, when all are in `rejected.jsonl`; None lists
                all of them in the manifest.

        Errors:
            UserError when the output cannot be renamed; everything is kept, and the next call renames it.
        """
        if not self.is_merging:
            self._begin_merging(description, renumber, most_named)
        try:
            manifest = read_json_object(self._merged / MANIFEST)
            for folder, shard, name in self._named_shards(renumber):
                old, new = folder / shard["file"], self._merged / name
                for source, target in ((index_path(old), index_path(new)), (old, new)):
                    if source.exists():  # otherwise an earlier call moved it
                        os.replace(source, target)
            for shard in manifest["shards"]:
                if not inside(self._merged, shard["file"], "shard").is_file():
                    raise UserError(f"{shard['file']} is missing")
        except (UserError, KeyError, TypeError) as error:
            raise UserError(
                f"the unfinished work in {self.folder} is damaged ({error}): remove it and start again"
            ) from error
        save_packed_index(self._merged, manifest["shards"])
        mark_shards(self._merged, self._command)
        (self.folder / _RUN).unlink(missing_ok=True)  # a process that starts now finds the output
        publish(self._merged, self.output)
        shutil.rmtree(self.folder, ignore_errors=True)
        return manifest

    def _begin_merging(self, description: Mapping[str, Any], renumber: bool, most_named: int | None) -> None:
        """Write the manifest of the output: from then on shards may move."""
        shutil.rmtree(self._merged, ignore_errors=True)
        self._merged.mkdir()
        shards = [{**shard, "file": name} for _, shard, name in self._named_shards(renumber)]
        rejected = self.rejected
        manifest = build_manifest(description, shards, rejected)
        if most_named is not None and rejected:
            del manifest["rejected"]["samples"][most_named:]
            lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rejected)
            (self._merged / REJECTED).write_text(lines, encoding="utf-8")
        write_manifest(self._merged, manifest)

    def _all_parts(self) -> Iterator[dict[str, Any]]:
        for number in itertools.count():
            try:
                yield self._parts.get(number) or _read_part(self._part_folder(number))
            except UserError:
                return

    def _named_shards(self, renumber: bool) -> Iterator[tuple[Path, dict[str, Any], str]]:
        """(folder of its part, manifest entry, name in the output) of every shard."""
        numbers: Counter[str] = Counter()
        for number, part in enumerate(self._all_parts()):
            for shard in part["shards"]:
                split = shard["split"]
                name = f"{plain_name(split, 'the split')}-{numbers[split]:05d}.tar"
                numbers[split] += 1
                yield self._part_folder(number), shard, name if renumber else shard["file"]


def count_finished(output: Path) -> int:
    """How many finished parts of `output` are kept."""
    return len(list(partial_folder(output).glob(f"*/{_PART}")))


def _read_part(folder: Path) -> dict[str, Any]:
    """The `part.json` of a part. UserError where it is missing, or not what `PartWriter.finish` returns."""
    path = folder / _PART
    part = read_json_object(path)
    for shard in take_list(part, "shards", lambda shard: isinstance(shard, dict), "shards", path):
        check_shard_entry(shard, str(path))
    take_list(part, "rejected", is_rejection, "rejected samples", path)
    return part
