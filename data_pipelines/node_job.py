"""A job on several nodes that share a file system and nothing else: no node waits for another.

Node I of N makes every part whose number leaves the remainder I, and then notes where the samples ended for
it. The node that finds the notes of all of them merges the parts. Nodes may run at the same time or one after
the other, be killed and started again, and their number may change in between: finished parts are kept.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..common.errors import UserError, shown
from ..common.files import write_text
from ..common.json_files import read_json_object, take_count
from ..common.locks import LOCK, only_process
from ..common.outputs import SHARD_MAKERS, Inputs, check_output, mark_output, refuse_overlap
from .job import Job, Share
from .partial_output import can_resume, check_made_here, clear, write_plan

#: Seconds within which another node is done with beginning the work, or with merging it.
_PATIENCE = 60.0
_NODE = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True)
class Node:
    """Number `index` (from 0) of `count` nodes."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Node:
        """The node of "I/N". UserError for anything else."""
        found = _NODE.fullmatch(text.strip())
        node = cls(*map(int, found.groups())) if found else cls(0, 0)
        if not 0 <= node.index < node.count:
            raise UserError(f"--node is {shown(text)}; give I/N with I from 0 to N - 1, such as 0/4 and 3/4")
        return node

    @classmethod
    def from_environment(cls) -> Node:
        """As set by torchrun and srun; the only node without them."""
        share = Share.from_environment()
        return cls(share.rank, share.size)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class NodeJob(Job):
    """A `Job` of one node; arguments and errors as there.

    Its plan differs from that of a job on one node, so that neither takes over the other's unfinished work.
    """

    def __init__(
        self,
        output: Path,
        plan: Mapping[str, Any],
        node: Node,
        *,
        command: str,
        inputs: Inputs | None = None,
        overwrite: bool = False,
    ) -> None:
        super().__init__(
            output, {**plan, "by_nodes": True}, command=command, inputs=inputs, overwrite=overwrite
        )
        self.node = node
        self.count = 0  # of the parts that are known to have samples

    def __enter__(self) -> NodeJob:
        check_output(self.output, self._inputs, self._overwrite, makers=SHARD_MAKERS)
        refuse_overlap(self.folder, self._inputs, "the unfinished output")
        check_made_here(self.folder)
        with ExitStack() as lock:
            what = f"--node {self.node} of --output {self.output}"
            lock.enter_context(only_process(self.folder, what, f"-node-{self.node.index}"))
            try:
                with FileLock(self.folder / LOCK, timeout=_PATIENCE):
                    resumes = can_resume(self.folder, self.plan, self._overwrite)
                    mark_output(self.folder, self._command, entries=())  # first, for `check_made_here`
                    if not resumes:
                        clear(self.folder)
                        write_plan(self.folder, self.plan)
            except Timeout:
                raise UserError(f"--output {self.output} is in use by a run without --node") from None
            self._lock = lock.pop_all()
        return self

    def clear(self) -> None:
        """Keep all parts: they are other nodes' too."""

    def numbers(self) -> Iterator[int]:
        """The numbers of this node's parts, without end."""
        return itertools.count(self.node.index, self.node.count)

    def note_end(self) -> None:
        """Record that this node's parts are complete: part `count` and later ones have no samples."""
        ended = next(number for number in self.numbers() if number >= self.count)
        write_text(self._note(self.node.index), json.dumps({"ended": ended}))

    def unfinished_nodes(self) -> list[int]:
        """The nodes that have not noted the end of their parts."""
        return [index for index in range(self.node.count) if self._ended(index) is None]

    def count_parts(self) -> int:
        """The number of parts of all nodes, once all have finished; each of them is complete.

        Errors:
            UserError for a part that is missing or damaged. Its node has to run again.
        """
        # Of as many successive numbers as there are nodes, each node has one: the least is the first without
        # samples.
        count = min(self._ended(index) or 0 for index in range(self.node.count))
        missing = [number for number in range(count) if not self.is_finished(number)]
        if missing:
            nodes = sorted({number % self.node.count for number in missing})
            for index in nodes:
                self._note(index).unlink(missing_ok=True)
            raise UserError(
                f"{len(missing)} of {count} parts in {self.folder} are missing or damaged: run node "
                f"{', '.join(map(str, nodes))} of {self.node.count} again"
            )
        return count

    def merging(self) -> FileLock | None:
        """The lock, acquired, under which one node merges; None while another one does, or has done so."""
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):
            return None
        return lock

    def _note(self, index: int) -> Path:
        return self.folder / f"node-{index}-of-{self.node.count}.json"

    def _ended(self, index: int) -> int | None:
        path = self._note(index)
        try:
            return take_count(read_json_object(path), "ended", path)
        except UserError:
            return None
