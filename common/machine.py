"""What a machine is called, how many threads a piece of work on the CPU is worth, and how threads wait.

Torch splits every operation over all cores and waits at its end until each core has done its part. Operations
of a small model are so short that the parts cost more than they save; and beside other busy processes a core
comes back only after a whole time slice, so that a step of a thousand operations takes seconds.
"""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Weights from which a model gets all threads for any work.
LARGE_MODEL = 2**26
#: Multiplications (weights x rows) of a pass through a small model that are worth several threads, provided
#: that they sleep while they wait.
LARGE_BATCH = 2**28
# How OpenMP's threads wait (of GNU, and of LLVM and Intel); each is read once, when torch is imported.
WAITING = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
_CHOSEN_BY_USER = (*WAITING, "GOMP_SPINCOUNT")

_lock = threading.Lock()
_inside = 0  # calls that hold torch to one thread now
_usual = 0  # the number of threads when there was no such call
_own = threading.local()


def processor_name(device: str) -> str:
    """The GPU, for "cuda", or how many CPU threads torch uses: "2 CPU threads (x86_64)"."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' if threads > 1 else ''} ({platform.machine()})"


def describe_machine(device: str) -> str:
    """What results were measured on, in one line: "2 CPU threads (x86_64), torch 2.15.0"."""
    import torch

    return f"{processor_name(device)}, torch {torch.__version__}"


def wait_passively() -> None:
    """Have threads sleep, not spin, while they wait for one another, unless the environment says how.

    A process's first act: it has no effect once torch is imported.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _CHOSEN_BY_USER):
        os.environ.update(WAITING)


def worth_threads(weights: int, rows: int) -> bool:
    """Whether passing `rows` through a model of so many weights should use more than one thread."""
    passive = os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive"
    return weights >= LARGE_MODEL or (passive and weights * rows >= LARGE_BATCH)


@contextmanager
def suitable_threads(model: Any, rows: int) -> Iterator[None]:
    """Run torch's operations within on one thread where passing `rows` through a torch module is not worth
    more (`worth_threads`).

    Never on more than torch would use anyway. Other threads of the program keep the number they have.
    """
    import torch

    parameters = list(model.parameters())
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    weights = sum(parameter.numel() for parameter in parameters)
    if not on_cpu or torch.compiler.is_compiling() or worth_threads(weights, rows):
        yield
        return
    before = _enter(torch.get_num_threads())
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        _leave()
        if before > 1:
            torch.set_num_threads(before)


def _enter(present: int) -> int:
    """The number of threads to go back to.

    A thread that is new to torch takes over the number that was set last, by whatever thread: where another
    one is in this context, that number is not the program's own.
    """
    global _inside, _usual
    with _lock:
        if _inside == 0:
            _usual = present
        known = getattr(_own, "known", False)
        _own.known = True
        _inside += 1
        return present if known or _inside == 1 else max(present, _usual)


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
