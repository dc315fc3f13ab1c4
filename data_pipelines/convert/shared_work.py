"""One output folder made shard by shard, by several processes, in as many attempts as it takes.

Finished shards wait in `OUTPUT.partial`, each in a folder of its own that appears only when it is whole. The
main process puts them together at the end. Processes share nothing but this folder: no connection between
them can break, and a killed run goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.errors import UserError, shown
from ...common.files import atomic_file
from ...common.json_files import read_json_object
from ...common.outputs import Inputs
from ...common.paths import inside, plain_name
from ..shards.format import MANIFEST, mark_shards, read_manifest
from ..shards.tar_index import index_path
from .unfinished import clear, deliver, goes_on, making, partial_folder, read_plan, write_plan

_COMMAND = "dualtoken tokenize"
_JOB = "job.json"
_MOVES = "moves.json"
_POLL = 0.2


@dataclass(frozen=True)
class Share:
    """This process's part of the shards: every `size`-th from `rank` on.

    `job` is the same in all processes that were started together, and in no others.
    """

    rank: int = 0
    size: int = 1
    job: str = ""

    @classmethod
    def from_environment(cls) -> Share:
        """As torchrun, the deepspeed launcher and accelerate say it; alone without them.

        Errors:
            UserError where RANK and WORLD_SIZE are not numbers that fit together.
        """
        names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
        job = " ".join(os.environ.get(name, "") for name in names).strip()
        rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        try:
            share = cls(int(rank), int(size), job)
        except ValueError:
            share = cls(-1, 0)
        if not 0 <= share.rank < share.size:
            raise UserError(f"RANK is {shown(rank)} and WORLD_SIZE {shown(size)}: give neither, or numbers")
        return share

    @property
    def is_main(self) -> bool:
        return self.rank == 0


class SharedWork:
    """The folder `OUTPUT.partial`, and its way to `output`; use it as a context manager.

    The main process holds the folder, and the others join only work that theirs has begun: two jobs never
    share an output.

    `plan` (any JSON) is what the result depends on: an unfinished folder is only gone on with by the same
    plan. `inputs` are what `output` may not be. `patience` is how many seconds may pass without a sign of
    the other processes.
    """

    def __init__(
        self,
        output: Path,
        plan: Mapping[str, Any],
        share: Share,
        overwrite: bool = False,
        patience: float = 1800.0,
        inputs: Inputs | None = None,
    ) -> None:
        self.output, self.plan, self.share = output, json.loads(json.dumps(plan)), share
        self.overwrite, self.patience, self.inputs = overwrite, patience, inputs or {}
        self.folder = partial_folder(output)
        self._held = ExitStack()
        self._finished: set[int] = set()

    def __enter__(self) -> SharedWork:
        """Agree on the plan. Raises UserError when there is other work in the way."""
        if self.share.is_main:
            with ExitStack() as held:
                held.enter_context(making(self.output, self.inputs, self.overwrite, _COMMAND))
                if not goes_on(self.folder, self.plan, self.overwrite):
                    clear(self.folder)
                    write_plan(self.folder, self.plan)
                self._write_job()
                self._held = held.pop_all()
        else:
            # With `overwrite` a folder made by the same plan may be the very one that is to be made again.
            self._wait(
                lambda: self._has_begun() or (not self.overwrite and self._is_done()), "the plan of rank 0"
            )
        return self

    def __exit__(self, *error: Any) -> None:
        self._held.close()

    def _write_job(self) -> None:
        with atomic_file(self.folder / _JOB) as temporary:
            temporary.write_text(json.dumps(self._job()), encoding="utf-8")

    def _has_begun(self) -> bool:
        """Whether the main process of this job works on the same plan."""
        try:
            return read_json_object(self.folder / _JOB) == self._job() and read_plan(self.folder) == self.plan
        except UserError:
            return False

    def _job(self) -> dict[str, Any]:
        return {**asdict(self.share), "rank": 0}

    def _is_done(self) -> bool:
        try:
            return bool(read_manifest(self.output).get("plan") == self.plan)
        except UserError:
            return False

    def part(self, number: int) -> Path:
        """The folder of shard `number` of the input."""
        return self.folder / f"{number:06d}"

    def clean(self, number: int) -> None:
        """Remove what a killed process has left of this shard."""
        for torn in self.folder.glob(f".{self.part(number).name}-*"):
            shutil.rmtree(torn, ignore_errors=True)

    def is_finished(self, number: int) -> bool:
        """Whether shard `number` of the input has become whole shards, which are all there."""
        if number not in self._finished and (self._is_put_together() or self._is_whole(number)):
            self._finished.add(number)
        return number in self._finished

    def _is_put_together(self) -> bool:
        """Whether all shards were finished before: an earlier `finish` has begun to move them."""
        try:
            return bool(read_json_object(self.whole / MANIFEST).get("plan") == self.plan)
        except UserError:
            return False

    def _is_whole(self, number: int) -> bool:
        part = self.part(number)
        if not (part / MANIFEST).is_file():
            return False
        try:
            manifest = read_manifest(part)
            _total_counts([manifest["counts"]]), _all_rejected([manifest["rejected"]])
            files = [(inside(part, one["file"], "shard"), one["bytes"]) for one in manifest["shards"]]
            return all(path.stat().st_size == size for path, size in files)
        except (UserError, OSError, LookupError, TypeError, AttributeError):  # damaged: it is made again
            return False

    def own(self, count: int) -> list[int]:
        """The numbers of the unfinished shards, of `count`, that are this process's to make."""
        if not self._has_begun():  # this process came when all was done
            return []
        mine = range(self.share.rank, count, self.share.size)
        return [number for number in mine if not self.is_finished(number)]

    def wait_for_all(self, count: int, waiting: Callable[[int], None]) -> None:
        """Until every process has made its shards; `waiting` is told how many are there."""

        def done() -> bool:
            finished = sum(self.is_finished(number) for number in range(count))
            waiting(finished)
            return finished == count

        def missing() -> str:
            ranks = {n % self.share.size for n in range(count) if not self.is_finished(n)}
            return f"the shards of rank {', '.join(map(str, sorted(ranks)))}"

        self._wait(done, missing)

    @property
    def whole(self) -> Path:
        """The folder that becomes the output."""
        return self.folder / "whole"

    def finish(self, count: int, description: Mapping[str, Any]) -> dict[str, Any]:
        """Put all shards together as `output`, with `description` in the manifest, which is returned.

        Can be killed and called again at any moment. Raises UserError when the last renaming fails; all is
        kept then, and the next call renames it.
        """
        if not self._is_put_together():
            self._plan_moves(count, description)
        manifest = read_json_object(self.whole / MANIFEST)
        try:
            for move in read_json_object(self.folder / _MOVES)["moves"]:
                self._move(*move)
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"the unfinished work in {self.folder} is damaged ({error}): remove it and start again"
            ) from error
        mark_shards(self.whole, _COMMAND)
        (self.folder / _JOB).unlink(missing_ok=True)  # who comes now finds the output
        deliver(self.whole, self.output)
        shutil.rmtree(self.folder, ignore_errors=True)
        return manifest

    def _plan_moves(self, count: int, description: Mapping[str, Any]) -> None:
        """Write which shard of which part gets which name, then the manifest: from now on shards may move."""
        parts = [read_manifest(self.part(number)) for number in range(count)]
        shards: list[dict[str, Any]] = []
        moves: list[tuple[int, str, str]] = []
        numbers: Counter[str] = Counter()
        for number, part in enumerate(parts):
            for shard in part["shards"]:
                name = f"{plain_name(shard['split'], 'the split')}-{numbers[shard['split']]:05d}.tar"
                numbers[shard["split"]] += 1
                moves.append((number, shard["file"], name))
                shards.append({**shard, "file": name})
        manifest = {
            **description,
            "counts": _total_counts([part["counts"] for part in parts]),
            "shards": sorted(shards, key=lambda shard: shard["file"]),
            "rejected": _all_rejected([part["rejected"] for part in parts]),
            "plan": self.plan,
        }
        shutil.rmtree(self.whole, ignore_errors=True)
        with atomic_file(self.folder / _MOVES) as temporary:
            temporary.write_text(json.dumps({"moves": moves}), encoding="utf-8")
        with atomic_file(self.whole / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _move(self, number: int, file: str, name: str) -> None:
        """Move a shard and its index, unless an earlier call did. UserError where it is lost."""
        old = inside(self.part(number), file, "shard")
        new = inside(self.whole, name, "shard")
        for source, target in ((index_path(old), index_path(new)), (old, new)):
            if source.exists():
                os.replace(source, target)
        if not new.is_file():
            raise UserError(f"{old} is lost")

    def _wait(self, ready: Callable[[], bool], what: str | Callable[[], str]) -> None:
        since, newest = time.monotonic(), 0.0
        while not ready():
            sign = max((path.stat().st_mtime for path in _tree(self.folder)), default=0.0)
            if sign > newest:
                since, newest = time.monotonic(), sign
            if time.monotonic() - since > self.patience:
                text = what if isinstance(what, str) else what()
                raise UserError(
                    f"rank {self.share.rank} waited for {text}, and nothing was written in {self.folder} for "
                    f"{self.patience:.0f} s: look at the other processes, then start the same command again"
                )
            time.sleep(_POLL)


def _tree(folder: Path) -> list[Path]:
    """What lies in a folder, two levels deep; files that vanish meanwhile are passed over."""
    found = []
    for path in (*folder.glob("*"), *folder.glob("*/*")):
        if path.exists():
            found.append(path)
    return found


def _total_counts(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    splits: Counter[str] = Counter()
    for one in counts:
        splits.update(one["splits"])
    totals = {key: sum(one[key] for one in counts) for key in ("records", "images", "rejected")}
    return {**totals, "splits": dict(splits)}


def _all_rejected(rejected: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    reasons: Counter[str] = Counter()
    for one in rejected:
        reasons.update(one["reasons"])
    return {"reasons": dict(reasons), "samples": [sample for one in rejected for sample in one["samples"]]}
