"""The processes of a run: one without a launcher, or many under ``deepspeed`` or ``torchrun``."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from ...common.errors import UserError
from .deepspeed import join_processes, leave_processes

T = TypeVar("T")

#: Words in the errors that communication raises when another process is gone or late.
_FAULTS = ("gloo", "nccl", "timed out", "timeout", "connection", "socket", "process group", "peer")


@dataclass(frozen=True)
class World:
    """The rank and device of this process and the number of processes; by default a single CPU process."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """All-gather a small picklable object: every rank's value, by rank."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Broadcast the main rank's value."""
        return self.gather(value)[0]

    def everywhere(self, action: Callable[[], T]) -> list[T]:
        """Run ``action`` on every rank; return all results, or raise the first UserError, on all ranks."""
        value: Any = None
        error: str | None = None
        try:
            value = action()
        except UserError as mistake:
            error = str(mistake)
        results = self.gather((value, error))
        for _, error in results:
            if error is not None:
                raise UserError(error)
        return [value for value, _ in results]

    def on_main(self, action: Callable[[], T]) -> T:
        """Run ``action`` on the main rank; return its result, or raise its UserError, on all ranks."""
        return cast(T, self.everywhere(action if self.is_main else lambda: None)[0])


def join_world(threads: int = 0, timeout: timedelta = timedelta(minutes=30)) -> World:
    """Join the process group; a process without a launcher becomes a world of one.

    Args:
        threads: CPU threads of this process; 0 leaves torch's default.
        timeout: waiting longer for the other processes, now or later, is an error.
    """
    if "WORLD_SIZE" not in os.environ:  # DeepSpeed would require mpi4py
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port()
        )
    if threads:
        torch.set_num_threads(threads)
    use_cuda = torch.cuda.is_available()
    join_processes("nccl" if use_cuda else "gloo", timeout)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    else:
        _keep_freed_memory()
    return World(dist.get_rank(), dist.get_world_size(), device)


def leave_world() -> None:
    """Leave the process group, so that its threads do not abort the process at exit.

    Not to be called after a failure: it waits for the other processes, which may be stuck.
    """
    leave_processes()


def is_lost_connection(error: BaseException) -> bool:
    """Whether it is a communication error caused by another process that is gone or late."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _FAULTS)


def _keep_freed_memory() -> None:
    """Make glibc reuse large blocks instead of returning them to the system after every operation.

    Otherwise batches of varying length spend a quarter of a CPU step on page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
            mallopt(parameter, value)


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
