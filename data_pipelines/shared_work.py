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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import atomic_file, replace_folder
from .shards import MANIFEST, read_manifest
from .tar_index import index_path
from .unfinished import PLAN, goes_on, read_plan, require_free, write_plan

_POLL = 0.2


@dataclass(frozen=True)
class Share:
    """This process's part of the shards: every `size`-th from `rank` on."""

    rank: int = 0
    size: int = 1

    @classmethod
    def from_environment(cls) -> Share:
        """As torchrun, the deepspeed launcher and accelerate say it; alone without them."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        return self.rank == 0


class SharedWork:
    """The folder `OUTPUT.partial`, and its way to `output`.

    `plan` (any JSON) is what the result depends on: an unfinished folder is only gone on with by the same
    plan. `patience` is how many seconds may pass without a sign of the other processes.
    """

    def __init__(
        self,
        output: Path,
        plan: Mapping[str, Any],
        share: Share,
        overwrite: bool = False,
        patience: float = 1800.0,
    ) -> None:
        self.output, self.plan, self.share = output, json.loads(json.dumps(plan)), share
        self.overwrite, self.patience = overwrite, patience
        self.folder = output.with_name(f"{output.name}.partial")

    def begin(self) -> None:
        """Agree on the plan. Raises UserError when there is other work in the way."""
        if self.share.is_main:
            require_free(self.output, self.overwrite)
            if not goes_on(self.folder, self.plan, self.overwrite):
                shutil.rmtree(self.folder, ignore_errors=True)
                write_plan(self.folder, self.plan)
        else:
            # With `overwrite` a folder made by the same plan may be the very one that is to be made again.
            self._wait(
                lambda: read_plan(self.folder) == self.plan or (not self.overwrite and self._is_done()),
                "the plan of rank 0",
            )

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
        return (self.part(number) / MANIFEST).is_file()

    def own(self, count: int) -> list[int]:
        """The numbers of the unfinished shards, of `count`, that are this process's to make."""
        if not self.folder.exists():  # this process came when all was done
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

    def finish(self, count: int, description: Mapping[str, Any]) -> dict[str, Any]:
        """Put all shards together as `output`, with `description` in the manifest, which is returned.

        Can be killed and called again at any moment.
        """
        parts = [read_manifest(self.part(number)) for number in range(count)]
        whole = self.folder / "whole"
        whole.mkdir(exist_ok=True)
        shards: list[dict[str, Any]] = []
        numbers: Counter[str] = Counter()
        for number, part in enumerate(parts):
            for shard in part["shards"]:
                name = f"{shard['split']}-{numbers[shard['split']]:05d}.tar"
                numbers[shard["split"]] += 1
                old, new = self.part(number) / shard["file"], whole / name
                for source, target in ((index_path(old), index_path(new)), (old, new)):
                    if source.exists():
                        os.replace(source, target)
                shards.append({**shard, "file": name})
        manifest = {
            **description,
            "counts": _total_counts([part["counts"] for part in parts]),
            "shards": sorted(shards, key=lambda shard: shard["file"]),
            "rejected": _all_rejected([part["rejected"] for part in parts]),
            "plan": self.plan,
        }
        with atomic_file(whole / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (self.folder / PLAN).unlink()  # the parts are empty from now on
        replace_folder(whole, self.output)
        shutil.rmtree(self.folder, ignore_errors=True)
        return manifest

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
