"""The one mechanism for resumable work: an output folder of shards made part by part.

The work is cut into numbered parts, which any number of processes and attempts make. Everything lies in
`OUTPUT.partial` until the end, so `OUTPUT` is never incomplete: a finished part is a folder of its own, with
its shards and `part.json`, and appears only when it is complete. The main process merges all parts at the
end. Processes share nothing but this folder: no connection between them can break, and a killed run resumes
where it was and ends in the same bytes.
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
from ..common.files import atomic_file, atomic_folder
from ..common.json_files import read_json_object, take_list
from ..common.outputs import Inputs
from ..common.paths import inside, plain_name
from .partial_output import can_resume, clear, deliver, making, partial_folder, read_plan, write_plan
from .shards.format import MANIFEST, check_shard_entry, is_rejection, read_manifest
from .shards.tar_index import index_path
from .shards.writer import PartWriter, build_manifest, mark_shards, write_manifest

REJECTED = "rejected.jsonl"
_PART = "part.json"
_RUN = "run.json"
_POLL = 0.2  # seconds


@dataclass(frozen=True)
class Share:
    """This process's part of the work: every `size`-th part from `rank` on.

    `run` is the same in all processes that were started together, and in no others.
    """

    rank: int = 0
    size: int = 1
    run: str = ""

    @classmethod
    def from_environment(cls) -> Share:
        """As set by torchrun, the deepspeed launcher and accelerate; alone without them.

        Errors:
            UserError where RANK and WORLD_SIZE are not numbers that fit together.
        """
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
        run = " ".join(os.environ.get(name, "") for name in names).strip()
        rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        with suppress(ValueError):
            share = cls(int(rank), int(size), run)
            if 0 <= share.rank < share.size:
                return share
        raise UserError(f"RANK is {shown(rank)} and WORLD_SIZE {shown(size)}: give neither, or numbers")

    @property
    def is_main(self) -> bool:
        """Whether this process merges the parts."""
        return self.rank == 0


class Job:
    """The making of one folder of shards; use it as a context manager.

    The main process holds the unfinished folder; the others join only work that theirs has begun: two runs
    never share an output.

    Args:
        output: the folder to make.
        plan: what the result depends on (any JSON): unfinished work is only resumed by the same plan.
        command: what makes it, for the folder's mark.
        inputs: what `output` may not be.
        share: which parts this process makes.
        patience: seconds that may pass without a sign of the other processes.

    Errors:
        UserError on entering, where `output` may not be made or there is other work in the way.
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
        self._held = ExitStack()
        self._parts: dict[int, dict[str, Any]] = {}

    def __enter__(self) -> Job:
        if not self.share.is_main:
            # With `overwrite` a folder made by the same plan may be the very one that is to be made again.
            self._wait(
                lambda: self._has_begun() or (not self._overwrite and self._is_done()), "the plan of rank 0"
            )
            return self
        with ExitStack() as held:
            held.enter_context(making(self.output, self._inputs, self._overwrite, self._command))
            if not can_resume(self.folder, self.plan, self._overwrite):
                clear(self.folder)
                write_plan(self.folder, self.plan)
            with atomic_file(self.folder / _RUN) as temporary:
                temporary.write_text(json.dumps(self._run()), encoding="utf-8")
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.close()

    def _run(self) -> dict[str, Any]:
        return {**asdict(self.share), "rank": 0}

    def _has_begun(self) -> bool:
        """Whether the main process of this run works on the same plan."""
        try:
            return read_json_object(self.folder / _RUN) == self._run() and read_plan(self.folder) == self.plan
        except UserError:
            return False

    def _is_done(self) -> bool:
        try:
            return bool(read_manifest(self.output).get("plan") == self.plan)
        except UserError:
            return False

    # ---- parts

    def folder_of(self, number: int) -> Path:
        """The folder of a part."""
        return self.folder / f"{number:06d}"

    @contextmanager
    def making_part(
        self, number: int, key: Callable[[int], str], shard_size: int | None = None, first_shard: int = 0
    ) -> Iterator[PartWriter]:
        """Write a part, which is kept when the block ends without an error; arguments as of `PartWriter`."""
        folder = self.folder_of(number)
        for torn in self.folder.glob(f".{folder.name}-*"):  # what a killed process left
            shutil.rmtree(torn, ignore_errors=True)
        with atomic_folder(folder) as temporary:
            with PartWriter(temporary, shard_size, first_shard, key) as writer:
                yield writer
                part = writer.finish()
            (temporary / _PART).write_text(json.dumps(part, ensure_ascii=False), encoding="utf-8")
        self._parts[number] = part

    def is_finished(self, number: int) -> bool:
        """Whether a part is complete; while parts are merged, each is."""
        if number in self._parts or self.is_merging:
            return True
        folder = self.folder_of(number)
        try:
            part = _read_part(folder)
            complete = all((folder / one["file"]).stat().st_size == one["bytes"] for one in part["shards"])
        except (UserError, OSError):  # damaged: it is made again
            return False
        if complete:
            self._parts[number] = part
        return complete

    def first_unfinished(self) -> int:
        """The number of the first part that is not complete, while no parts are merged."""
        return next(number for number in itertools.count() if not self.is_finished(number))

    def clear(self) -> None:
        """Forget all parts."""
        self._parts.clear()
        clear(self.folder)

    def own(self, count: int) -> list[int]:
        """The unfinished ones of `count` parts that are this process's to make."""
        mine = range(self.share.rank, count, self.share.size)
        unfinished = [number for number in mine if not self.is_finished(number)]
        # A process that comes when all is done finds no parts any more.
        return unfinished if self._has_begun() and not self.is_merging else []

    def wait_for_all(self, count: int, waiting: Callable[[int], None]) -> None:
        """Until every process has made its parts; `waiting` is given the number of those that are there."""

        def done() -> bool:
            finished = sum(self.is_finished(number) for number in range(count))
            waiting(finished)
            return finished == count

        def missing() -> str:
            ranks = {n % self.share.size for n in range(count) if not self.is_finished(n)}
            return f"the shards of rank {', '.join(map(str, sorted(ranks)))}"

        self._wait(done, missing)

    def _wait(self, ready: Callable[[], bool], what: str | Callable[[], str]) -> None:
        since, newest = time.monotonic(), 0.0
        while not ready():
            sign = max((path.stat().st_mtime for path in _tree(self.folder)), default=0.0)
            if sign > newest:
                since, newest = time.monotonic(), sign
            if time.monotonic() - since > self._patience:
                text = what if isinstance(what, str) else what()
                raise UserError(
                    f"rank {self.share.rank} waited for {text}, and nothing was written in {self.folder} for "
                    f"{self._patience:.0f} s: look at the other processes, then start the same command again"
                )
            time.sleep(_POLL)

    # ---- the output

    @property
    def rejected(self) -> list[dict[str, str]]:
        """The samples that the parts left out, each {"sample", "reason"}."""
        return [item for part in self._all_parts() for item in part["rejected"]]

    @property
    def has_records(self) -> bool:
        """Whether any part has records."""
        return any(part["shards"] for part in self._all_parts())

    @property
    def is_merging(self) -> bool:
        """Whether all parts were finished, and their shards may have moved to the output's folder."""
        return (self._merged / MANIFEST).is_file()

    @property
    def _merged(self) -> Path:
        return self.folder / "whole"

    def finish(
        self, description: Mapping[str, Any], *, renumber: bool = False, most_named: int | None = None
    ) -> dict[str, Any]:
        """Merge all parts to the output, with `description` in its manifest, which is returned.

        Can be killed and called again at any moment.

        Args:
            renumber: shards are numbered anew over all parts; otherwise they keep their names.
            most_named: so many rejected samples are named in the manifest, and all in `rejected.jsonl`; None:
                all in the manifest.

        Errors:
            UserError when the last renaming fails; all is kept then, and the next call renames it.
        """
        if not self.is_merging:
            self._begin_merging(description, renumber, most_named)
        try:
            manifest = read_json_object(self._merged / MANIFEST)
            for folder, shard, name in self._named_shards(renumber):
                self._move(folder / shard["file"], self._merged / name)
            for shard in manifest["shards"]:
                if not inside(self._merged, shard["file"], "shard").is_file():
                    raise UserError(f"{shard['file']} is lost")
        except (UserError, KeyError, TypeError) as error:
            raise UserError(
                f"the unfinished work in {self.folder} is damaged ({error}): remove it and start again"
            ) from error
        mark_shards(self._merged, self._command)
        (self.folder / _RUN).unlink(missing_ok=True)  # a process that comes now finds the output
        deliver(self._merged, self.output)
        shutil.rmtree(self.folder, ignore_errors=True)
        return manifest

    def _begin_merging(self, description: Mapping[str, Any], renumber: bool, most_named: int | None) -> None:
        """Write the manifest of the output: from now on shards may move."""
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
                yield self._parts.get(number) or _read_part(self.folder_of(number))
            except UserError:
                return

    def _named_shards(self, renumber: bool) -> Iterator[tuple[Path, dict[str, Any], str]]:
        """(folder of its part, entry of the manifest, name in the output) of every shard."""
        numbers: Counter[str] = Counter()
        for number, part in enumerate(self._all_parts()):
            for shard in part["shards"]:
                split = shard["split"]
                name = f"{plain_name(split, 'the split')}-{numbers[split]:05d}.tar"
                numbers[split] += 1
                yield self.folder_of(number), shard, name if renumber else shard["file"]

    def _move(self, old: Path, new: Path) -> None:
        """Move a shard and its index, unless an earlier call did."""
        for source, target in ((index_path(old), index_path(new)), (old, new)):
            if source.exists():
                os.replace(source, target)


def count_finished(output: Path) -> int:
    """How many finished parts of `output` are kept."""
    return len(list(partial_folder(output).glob(f"*/{_PART}")))


def _tree(folder: Path) -> list[Path]:
    """What lies in a folder, two levels deep; files that vanish meanwhile are left out."""
    return [path for path in (*folder.glob("*"), *folder.glob("*/*")) if path.exists()]


def _read_part(folder: Path) -> dict[str, Any]:
    """The `part.json` of a part. UserError where there is none, or not what `PartWriter.finish` makes."""
    path = folder / _PART
    part = read_json_object(path)
    for shard in take_list(part, "shards", lambda shard: isinstance(shard, dict), "shards", path):
        check_shard_entry(shard, str(path))
    take_list(part, "rejected", is_rejection, "rejected samples", path)
    return part
