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

#: Words in what communication raises when another process is gone or late.
_FAULTS = ("gloo", "nccl", "timed out", "timeout", "connection", "socket", "process group", "peer")


@dataclass(frozen=True)
class World:
    """This process among all of a run: its rank, their number, its device. By default one on a CPU."""

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
        """Every rank's value (any small picklable object), on all of them."""
        values: list[Any] = [value]
        if self.size > 1:
            values = [None] * self.size
            dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """The main rank's value, on all of them."""
        return self.gather(value)[0]

    def everywhere(self, action: Callable[[], T]) -> list[T]:
        """What ``action`` returns on every rank, or the first UserError of any, on all of them."""
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
        """What ``action`` returns on the main rank, or the UserError that it raises there, on all of them."""
        return cast(T, self.everywhere(action if self.is_main else lambda: None)[0])


def join_world(threads: int = 0, timeout: timedelta = timedelta(minutes=30)) -> World:
    """Join the process group; a process without a launcher becomes a world of one.

    Waiting for the other processes longer than ``timeout``, now or later, is an error.

    DeepSpeed asks for mpi4py when the launcher's variables are missing, so they are set here for a single
    process.
    """
    if "WORLD_SIZE" not in os.environ:
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
    """Leave the process group: a process that ends within it is sometimes aborted by its threads, with its
    work done. Not for the end of a failed one: that would wait for others, which may be stuck."""
    leave_processes()


def is_lost_connection(error: BaseException) -> bool:
    """Whether communication raised it, because another process is gone or late."""
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _FAULTS)


def _keep_freed_memory() -> None:
    """Let the C library reuse large blocks instead of returning them to the system after every operation.

    Batches of changing length otherwise spend a quarter of a CPU step on page faults. Does nothing where the
    C library is not glibc.
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
